"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

Over a vocabulary of 49,152 the logits of one batch of answers are larger than the model's other tensors
together. Here they exist for a slice of the positions at a time and are computed again for the gradient,
which costs one more matrix product and saves the memory and the time of writing them out.

Names carry shapes: N positions, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

_LOGITS_CPU, _LOGITS_GPU = 1 << 23, 1 << 26  # Logits that exist at once: 32 MiB and 256 MiB of float32


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


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, ids_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        chosen, entropy, sums = [], [], []
        for part in _parts(head_VD, len(ids_N)):
            logits_nV = _logits(hidden_ND[part], head_VD, temperature)
            lse_n = logits_nV.logsumexp(-1)
            chosen.append(logits_nV.gather(-1, ids_N[part, None]).squeeze(-1) - lse_n)
            # H = lse - sum p logits: one pass less than summing -p log p.
            p_nV = (logits_nV - lse_n[:, None]).exp_()
            entropy.append(lse_n - p_nV.mul_(logits_nV).sum(-1))
            sums.append(lse_n)
        ctx.save_for_backward(hidden_ND, head_VD, ids_N, torch.cat(sums))
        ctx.temperature = temperature
        entropy_N = torch.cat(entropy)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(chosen), entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """d logp_i / d logits = (onehot - softmax) / temperature."""
        hidden_ND, head_VD, ids_N, lse_N = ctx.saved_tensors
        scale_N = gradients[0] / ctx.temperature
        by_hidden, by_head = [], torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        for part in _parts(head_VD, len(ids_N)):
            p_nV = _logits(hidden_ND[part], head_VD, ctx.temperature).sub_(lse_N[part, None]).exp_()
            p_nV.mul_(-scale_N[part, None]).scatter_add_(1, ids_N[part, None], scale_N[part, None])
            by_logits_nV = p_nV.to(head_VD.dtype)
            by_hidden.append(by_logits_nV @ head_VD)
            if by_head is not None:
                by_head += by_logits_nV.T @ hidden_ND[part]
        return torch.cat(by_hidden), by_head, None, None


def _logits(hidden_nD: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    return linear(hidden_nD, head_VD).float().div_(temperature)


def _parts(head_VD: Tensor, count: int) -> list[slice]:
    at_once = _LOGITS_CPU if head_VD.device.type == "cpu" else _LOGITS_GPU
    size = max(1, at_once // head_VD.shape[0])
    return [slice(start, start + size) for start in range(0, count, size)]
