"""Choosing the next token so that a request's own seed alone decides, whatever else is in the batch.

Names carry shapes: B rows, V vocabulary, K kept tokens, T new tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from solon.settings import Sampling

_SHORTCUT = (
    256  # At usual temperatures the nucleus nearly always lies in these; a full sort costs 20 times more.
)
_BELOW_ONE = 1 - 2**-23


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) for each seed, float64 [len(seeds), count], on the CPU.

    A row depends on its seed alone, and a shorter row is the start of a longer one.
    """
    rows = [
        torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(rows)


def draw(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [B] drawn with one uniform number a row, and the probability mass [B] drawn from.

    Temperature first, then top-p (Holtzman et al. 2020, sec. 3.1), both exact. Every row is computed from
    its own logits alone. A mass that is not finite tells that the logits were not.
    """
    logits_BV = logits_BV.float()
    if sampling.temperature != 1.0:
        logits_BV = logits_BV / sampling.temperature
    probs_BV = torch.softmax(logits_BV, dim=-1)
    if sampling.top_p == 1.0:
        return _inverse_cdf(probs_BV, uniform_B)
    top_BK, ids_BK = probs_BV.topk(min(_SHORTCUT, probs_BV.shape[-1]), dim=-1)
    chosen_B, mass_B = _draw_nucleus(top_BK, ids_BK, sampling.top_p, uniform_B)
    # Row by row: which way is taken must not depend on the neighbours.
    wider = (top_BK.sum(-1) < sampling.top_p).nonzero().squeeze(-1)
    if len(wider):
        sorted_, ids = probs_BV[wider].sort(dim=-1, descending=True, stable=True)
        chosen_B[wider], mass_B[wider] = _draw_nucleus(sorted_, ids, sampling.top_p, uniform_B[wider])
    return chosen_B, mass_B


def _draw_nucleus(probs_BK: Tensor, ids_BK: Tensor, top_p: float, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """From the smallest set of most probable tokens whose mass reaches `top_p`; columns are descending."""
    before_BK = probs_BK.cumsum(-1) - probs_BK
    index_B, mass_B = _inverse_cdf(probs_BK * (before_BK < top_p), uniform_B)
    return ids_BK.gather(-1, index_B.unsqueeze(-1)).squeeze(-1), mass_B


def _inverse_cdf(weights_BK: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first column at which the running sum exceeds uniform x total, and the total."""
    cdf_BK = weights_BK.cumsum(-1)
    total_B1 = cdf_BK[:, -1:]
    # Strictly below the total, so that a column of weight 0 at the end is never chosen.
    target_B1 = torch.minimum(uniform_B.to(cdf_BK.dtype).unsqueeze(-1) * total_B1, total_B1 * _BELOW_ONE)
    index_B1 = torch.searchsorted(cdf_BK, target_B1, right=True).clamp(max=weights_BK.shape[-1] - 1)
    return index_B1.squeeze(-1), total_B1.squeeze(-1)


class Chooser:
    """Chooses the next token of every row; with temperature 0 the most probable one.

    `broken` tells afterwards whether logits were not finite; asking at every token would make a GPU wait.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], device: torch.device) -> None:
        self._sampling = sampling
        self._uniform_BT = uniforms(seeds, sampling.max_tokens).float().to(device)
        self._broken = torch.zeros((), dtype=torch.bool, device=device)

    @property
    def broken(self) -> bool:
        return bool(self._broken)

    def __call__(self, logits_BV: Tensor, rows_B: Tensor, number: int) -> Tensor:
        """Token ids [B] of the rows `rows_B`, whose token this is the `number`-th new one."""
        if self._sampling.temperature == 0:
            # A hidden state that is no number makes all of its logits none: one column shows it.
            self._broken |= logits_BV[:, 0].isnan().any()
            return logits_BV.argmax(-1)
        chosen_B, mass_B = draw(logits_BV, self._sampling, self._uniform_BT[rows_B, number])
        self._broken |= ~mass_B.isfinite().all()
        return chosen_B
