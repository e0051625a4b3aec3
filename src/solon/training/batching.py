"""How rows of different lengths become rectangles: padding, masks, minibatches, and where answers lie.

Names carry shapes: B rows, T columns, N answer tokens of all rows together. Lengths are explicit everywhere;
no function reads a pad id.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_FULL = 0.9  # Of a row in a batch that is large enough without it.


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Token ids of all rows, int64 [B, T] with `fill` behind each row, and the lengths, int64 [B].

    T is the longest length; a row may be empty.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no rows to pad")
    lengths = [len(row) for row in rows]
    width = max(lengths)
    padded = [[*row, *[fill] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64)


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


def answer_positions(prompt_lengths_B: Tensor, answer_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Where the logits stand that predict the answer tokens: (row_N, column_N), int64.

    Rows are prompt + answer + right padding. The logits at a column predict the next one, so an answer in
    columns p to p + a - 1 is predicted at p - 1 to p + a - 2. Ordered by row, then by token:
    `hidden[row, column]` before the LM head gives [N, width], and
    `out_BT[mask_of(answer_lengths_B, T)] = x_N` puts results back.
    If the prompts are left-padded to one width, pass that width as every prompt length.

    Raises:
        ValueError: a prompt is empty (nothing predicts its first answer token) or a length is negative.
    """
    if (prompt_lengths_B < 1).any():
        raise ValueError("a prompt is empty: nothing predicts the first token of its answer")
    width = int(answer_lengths_B.max())
    row_N, token_N = mask_of(answer_lengths_B, width).nonzero(as_tuple=True)
    return row_N, prompt_lengths_B[row_N] - 1 + token_N
