"""How rows of different lengths become batches, and masks made from their lengths.

Names carry shapes: B rows, T columns. Lengths are explicit everywhere; no function reads a pad id.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_FULL = 0.9  # Of a row in a batch that is large enough without it.


def mask_of(lengths_B: Tensor, T: int) -> Tensor:
    """bool [B, T], true in the first `lengths_B` columns of each row.

    Raises:
        ValueError: a length is negative or above T.
    """
    if (lengths_B < 0).any() or (lengths_B > T).any():
        raise ValueError(f"lengths {lengths_B.tolist()} do not fit into {T} columns")
    return torch.arange(T, device=lengths_B.device) < lengths_B.unsqueeze(1)


def minibatches(n: int, size: int, generator: torch.Generator) -> list[list[int]]:
    """The indices 0..n-1 in a fresh random order, cut into lists of `size`; the last may be shorter.

    Raises:
        ValueError: size is below 1.
    """
    if size < 1:
        raise ValueError(f"minibatch size is {size}, must be at least 1")
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return [order[start : start + size] for start in range(0, n, size)]


def budget_batches(lengths: Sequence[int], budget: int, enough: int | None = None) -> list[list[int]]:
    """Indices in batches of like length, each of at most `budget` tokens counted with its padding.

    Longest first: a batch too large for the memory then fails at once and not at the end. A row that alone
    exceeds the budget stands alone. Deterministic: equal lengths keep their order.

    Args:
        enough: a batch of so many tokens is large enough to be read at full speed; it takes no further row
            that would be a tenth or more of padding. None: a batch is filled whatever the padding.

    Raises:
        ValueError: budget is below 1.
    """
    if budget < 1:
        raise ValueError(f"token budget is {budget}, must be at least 1")
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        own = len(batches[-1]) * width if batches else 0
        wasteful = enough is not None and own >= enough and lengths[index] <= _LEAST_FULL * width
        if not batches or own + width > budget or wasteful:
            batches.append([])
            width = lengths[index]
        batches[-1].append(index)
    return batches
