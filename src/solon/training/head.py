"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

Over a vocabulary of 49,152 the logits of one batch of answers are larger than the model's other tensors
together. Here they exist for a slice of the positions at a time. A log-probability's gradient by its hidden
state is a vector that does not depend on the loss, so it is computed in the same pass and the logits are
never needed again. Only a head that is trained itself needs them once more.

Names carry shapes: N positions, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LOGITS_CPU, _LOGITS_GPU = 1 << 22, 1 << 26  # Logits that exist at once: 16 MiB and 256 MiB of float32


def chosen_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, ids_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token under softmax(hidden head^T / temperature), and the entropy there.

    Both float32, [N], in nats. The log-probability has gradients by hidden and head; the entropy has none.
    Equal to `losses.token_logprobs` and `losses.entropy` of the whole logits.

    Raises:
        ValueError: temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    found: tuple[Tensor, Tensor] = _Chosen.apply(hidden_ND, head_VD, ids_N, temperature)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def log_normalisers(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
    """log sum exp (hidden head^T) at every position, float32 [N]: what log-probabilities lack to logits."""
    room = _Room(head_VD, len(hidden_ND))
    return torch.cat([_log_sum_exp(room.logits(hidden_ND[part])) for part in room.parts])


def _log_sum_exp(logits_nV: Tensor) -> Tensor:
    """`torch.logsumexp` over the last axis, written over the logits: torch's takes fresh memory for them."""
    largest_n = logits_nV.amax(-1)
    return logits_nV.sub_(largest_n[:, None]).exp_().sum(-1).log_().add_(largest_n)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, ids_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        chosen, entropy, sums, by_hidden = [], [], [], []
        room = _Room(head_VD, len(ids_N))
        for part in room.parts:
            logits_nV = room.logits(hidden_ND[part], ids_N[part], temperature)
            chosen_n = logits_nV.gather(-1, ids_N[part, None]).squeeze(-1)
            largest_n = logits_nV.amax(-1)
            logits_nV.sub_(largest_n[:, None])
            p_nV = torch.exp(logits_nV, out=room.other(logits_nV))
            total_n = p_nV.sum(-1)
            if ctx.needs_input_grad[0]:
                expected_nD = (room.short(p_nV) @ head_VD).float() / total_n[:, None]
                by_hidden.append((head_VD[ids_N[part]].float() - expected_nD) / temperature)
            # With x = logits - max and Z = sum exp x: H = log Z - sum (exp x) x / Z.
            mean_n = p_nV.mul_(logits_nV).sum(-1) / total_n
            sums.append(total_n.log() + largest_n)
            chosen.append(chosen_n - sums[-1])
            entropy.append(total_n.log() - mean_n)
        slopes_ND = torch.cat(by_hidden).to(hidden_ND.dtype) if by_hidden else None
        again = (hidden_ND, head_VD, ids_N, torch.cat(sums)) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(slopes_ND, *again)
        ctx.temperature = temperature
        entropy_N = torch.cat(entropy)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(chosen), entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """With d logp_i / d logits = (onehot - softmax) / temperature, and logits = hidden head^T."""
        slopes_ND, *again = ctx.saved_tensors
        by_hidden_ND = None if slopes_ND is None else (gradients[0][:, None] * slopes_ND).to(slopes_ND.dtype)
        by_head_VD = _by_head(gradients[0] / ctx.temperature, again, ctx.temperature) if again else None
        return by_hidden_ND, by_head_VD, None, None


def _by_head(scale_N: Tensor, saved: Sequence[Tensor], temperature: float) -> Tensor:
    """The gradient [V, D] by the head; `scale_N` is the gradient by log-probabilities over temperature."""
    hidden_ND, head_VD, ids_N, lse_N = saved
    by_head_VD = torch.zeros_like(head_VD)
    room = _Room(head_VD, len(ids_N))
    for part in room.parts:
        p_nV = room.logits(hidden_ND[part], ids_N[part], temperature).sub_(lse_N[part, None]).exp_()
        p_nV.mul_(-scale_N[part, None]).scatter_add_(1, ids_N[part, None], scale_N[part, None])
        by_head_VD += room.short(p_nV).T @ hidden_ND[part]
    return by_head_VD


class _Room:
    """Buffers for the logits of one slice of the positions at a time, written over by the next.

    Fresh memory of this size would cost more than what is computed in it: the system hands it out page by
    page.
    """

    def __init__(self, head_VD: Tensor, count: int) -> None:
        at_once = _LOGITS_CPU if head_VD.device.type == "cpu" else _LOGITS_GPU
        size = max(1, min(count, at_once // head_VD.shape[0]))
        self.parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        self._head_VD = head_VD
        self._short_nV = head_VD.new_empty(size, head_VD.shape[0])
        self._long_nV = torch.empty_like(self._short_nV, dtype=torch.float32)
        self._other_nV: Tensor | None = None

    def logits(self, hidden_nD: Tensor, ids_n: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """In float32, of the model's own products in its type; the largest and those of `ids_n` exactly.

        In bfloat16 a logit near 20 is rounded to an eighth. The chosen token's goes into its log-probability,
        and the largest is most of the normaliser: their rounding alone could change a token's probability
        by a tenth from one pass to the next, as much as PPO's clipping allows.
        """
        short_nV, long_nV = self._short_nV[: len(hidden_nD)], self._long_nV[: len(hidden_nD)]
        torch.mm(hidden_nD, self._head_VD.T, out=short_nV)
        long_nV.copy_(short_nV)
        if short_nV.dtype != torch.float32:
            largest_n = long_nV.argmax(-1)
            exact_nk = torch.stack([largest_n] if ids_n is None else [largest_n, ids_n], -1)
            head_nkD = self._head_VD[exact_nk].float()
            long_nV.scatter_(-1, exact_nk, (head_nkD @ hidden_nD.float()[..., None]).squeeze(-1))
        return long_nV if temperature == 1.0 else long_nV.div_(temperature)

    def other(self, like_nV: Tensor) -> Tensor:
        """A second float32 buffer, as long."""
        if self._other_nV is None:
            self._other_nV = torch.empty_like(self._long_nV)
        return self._other_nV[: len(like_nV)]

    def short(self, long_nV: Tensor) -> Tensor:
        """In the model's type."""
        return self._short_nV[: len(long_nV)].copy_(long_nV)
