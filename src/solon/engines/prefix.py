"""Work that rows share is done once: a common start of all prompts, and equal prompts sampled several times.

Few-shot examples and system texts stand at the start of many prompts, and best-of-n asks one prompt n
times. Their keys and values are computed once and copied. Rows are laid out as [start][padding][rest],
with explicit masks; positions count real tokens only, so the padding in the middle changes nothing.

Names carry shapes: B rows, U different rows, T columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from solon.engines.hooks import shares_starts
from solon.engines.shared_start import WORTH, KeptLayer, Start, own_mask


@dataclass(frozen=True)
class Layout:
    """Prompts as columns: the first `shared` are the same in all rows; every row ends in the last."""

    ids_BT: Tensor
    mask_BT: Tensor
    shared: int

    def rows(self, index_B: Tensor) -> "Layout":
        return Layout(self.ids_BT[index_B], self.mask_BT[index_B], self.shared)


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows have in common, leaving each at least one token of its own."""
    shortest = min(len(row) for row in rows) - 1
    first = rows[0]
    differ = (i for i in range(shortest) if any(row[i] != first[i] for row in rows))
    return next(differ, max(0, shortest))


def lay_out(rows: Sequence[Sequence[int]], pad: int) -> Layout:
    """Pad rows to one width, between their common start and the rest."""
    shared, width = common_start(rows), max(len(row) for row in rows)
    gaps = [width - len(row) for row in rows]
    ids = [[*row[:shared], *[pad] * gap, *row[shared:]] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
    return Layout(torch.tensor(ids), torch.tensor(mask), shared)


def prefill(model: Any, rows: Sequence[tuple[int, ...]], pad: int, room: int, apart: bool) -> "Filled":
    """Lay all rows out and compute what they share; `room` more columns will be appended.

    The cache holds the common start; where rows repeat, it holds all columns but the last, which decoding
    still needs to see. With `apart` (`shared_start.keeps_apart`) the start is kept once for all rows.
    """
    unique = list(dict.fromkeys(rows))
    place = {row: i for i, row in enumerate(unique)}
    layout = lay_out(unique, pad)
    cache, kept = DynamicCache(config=model.config), 0
    if layout.shared:
        extend(model, cache, layout.ids_BT[:1, : layout.shared], layout.mask_BT[:1, : layout.shared])
        if apart and layout.shared >= WORTH:
            kept = layout.shared
            cache.layers = [KeptLayer(room, Start(layer.keys, layer.values)) for layer in cache.layers]
        else:
            cache.batch_repeat_interleave(len(unique))
    if len(unique) < len(rows):
        extend(model, cache, layout.ids_BT[:, :-1], layout.mask_BT[:, :-1], kept)
        cache.batch_select_indices(torch.tensor([place[row] for row in rows], device=model.device))
    if not kept and shares_starts(model):
        cache.layers = [KeptLayer(room, own=layer) for layer in cache.layers]
    return Filled(layout.rows(torch.tensor([place[row] for row in rows])), cache, kept)


@dataclass(frozen=True)
class Filled:
    """Rows laid out, and what is computed of them. The first `kept` columns lie apart, once for all rows."""

    layout: Layout
    cache: DynamicCache
    kept: int


def extend(model: Any, cache: DynamicCache, ids_BT: Tensor, mask_BT: Tensor, kept: int = 0) -> None:
    """Compute the columns of `ids_BT` that the cache lacks; `mask_BT` is 1 where a token is real.

    The first `kept` columns lie apart from the others in the cache.
    """
    start = cache.get_seq_length()
    if start >= ids_BT.shape[1]:
        return
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    seen = own_mask(mask_BT[:, kept:].bool(), model.dtype, start - kept) if kept else mask_BT
    model.base_model(
        input_ids=ids_BT[:, start:].to(model.device),
        attention_mask=seen.to(model.device),
        position_ids=positions_BT[:, start:].to(model.device),
        past_key_values=cache,
        use_cache=True,
    )
