"""Work that rows share is done once: a common start of all prompts, and equal prompts sampled several times.

Few-shot examples and system texts stand at the start of many prompts, and best-of-n asks one prompt n
times. Their keys and values are computed once and copied. Rows are laid out as [start][padding][rest],
with explicit masks; positions count real tokens only, so the padding in the middle changes nothing. Models
that count columns or carry a state from one to the next have all padding before the prompt.

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
from solon.training.batching import budget_batches

_ENOUGH = 256  # Tokens of a pass at which a CPU's matrix products run at full speed


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


def lay_out(rows: Sequence[Sequence[int]], pad: int, shares: bool = True) -> Layout:
    """Pad rows to one width, between their common start and the rest, or before all unless it `shares`."""
    shared, width = common_start(rows) if shares else 0, max(len(row) for row in rows)
    gaps = [width - len(row) for row in rows]
    ids = [[*row[:shared], *[pad] * gap, *row[shared:]] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
    return Layout(torch.tensor(ids), torch.tensor(mask), shared)


def prefill(
    model: Any, rows: Sequence[tuple[int, ...]], pad: int, room: int, apart: bool, together: int
) -> "Filled":
    """Lay all rows out and compute what need not be computed row by row; `room` more columns will follow.

    The cache holds the common start. Where rows repeat, or the start is kept `apart`, once for all rows
    (`shared_start.keeps_apart`), it holds all columns but the last, which decoding still needs to see; beside
    a start apart, rows of like length are computed, of so many tokens `together`.
    """
    unique = list(dict.fromkeys(rows))
    place = {row: i for i, row in enumerate(unique)}
    layout = lay_out(unique, pad, shares_starts(model))
    cache, kept, index_B = DynamicCache(config=model.config), 0, torch.tensor([place[row] for row in rows])
    if layout.shared:
        extend(model, cache, layout.ids_BT[:1, : layout.shared], layout.mask_BT[:1, : layout.shared])
        if apart and layout.shared >= WORTH:
            kept = layout.shared
            cache.layers = _own_columns(model, layout, cache, room, together)
        else:
            cache.batch_repeat_interleave(len(unique))
    if len(unique) < len(rows):
        if not kept:
            extend(model, cache, layout.ids_BT[:, :-1], layout.mask_BT[:, :-1])
        cache.reorder_cache(index_B.to(model.device))
    if not kept and shares_starts(model):
        cache.layers = [KeptLayer(room, own=layer) for layer in cache.layers]
    return Filled(layout.rows(index_B), cache, kept)


@dataclass(frozen=True)
class Filled:
    """Rows laid out, and what is computed of them. The first `kept` columns lie apart, once for all rows."""

    layout: Layout
    cache: DynamicCache
    kept: int


def extend(model: Any, cache: DynamicCache, ids_BT: Tensor, mask_BT: Tensor) -> None:
    """Compute the columns of `ids_BT` that the cache lacks; `mask_BT` is 1 where a token is real."""
    start = cache.get_seq_length()
    if start >= ids_BT.shape[1]:
        return
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    _pass(model, cache, ids_BT[:, start:], mask_BT, positions_BT[:, start:])


def _own_columns(
    model: Any, layout: Layout, start: DynamicCache, room: int, together: int
) -> list[KeptLayer]:
    """Layers that keep the start apart, with the rows' own columns but the last.

    Rows of like length are computed together: padded to the longest, short prompts beside a long one would
    cost as much as it does.
    """
    layers = [KeptLayer(room, Start(layer.keys, layer.values)) for layer in start.layers]
    lengths = (layout.mask_BT[:, layout.shared :].sum(1) - 1).tolist()
    count, width = len(lengths), max(lengths)
    for group in budget_batches(lengths, together, _ENOUGH):
        if longest := lengths[group[0]]:
            computed = _group(model, layout.rows(torch.tensor(group)), layers, longest)
            for layer, own in zip(layers, computed, strict=True):
                layer.place(own.keys, own.values, group, count, width)
    return layers


def _group(model: Any, layout: Layout, kept: Sequence[KeptLayer], longest: int) -> list[KeptLayer]:
    """Layers with the own columns of rows that have at most `longest` before their last."""
    cache = DynamicCache(config=model.config)
    cache.layers = [KeptLayer(0, layer.start) for layer in kept]
    ids_BT, mask_BT = layout.ids_BT[:, -longest - 1 : -1], layout.mask_BT[:, -longest - 1 : -1]
    positions_BT = layout.shared + mask_BT.cumsum(1) - 1
    _pass(model, cache, ids_BT, own_mask(mask_BT.bool(), model.dtype), positions_BT)
    layers: list[KeptLayer] = cache.layers
    return layers


def _pass(model: Any, cache: DynamicCache, ids_BT: Tensor, seen: Tensor, positions_BT: Tensor) -> None:
    """Add these columns to the cache."""
    model.base_model(
        input_ids=ids_BT.to(model.device),
        attention_mask=seen.to(model.device),
        position_ids=positions_BT.to(model.device),
        past_key_values=cache,
        use_cache=True,
    )
