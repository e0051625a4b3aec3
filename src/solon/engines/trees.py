"""Rows that start alike are read once: packed into trees, every distinct start is computed a single time.

Sixteen principles asked about the same pair, the options of one question, two answers to one prompt: all
are rows with a long common start. A tree holds a node for every distinct start; its forward pass is one
packed row in which a node attends to its ancestors alone (tree attention, Miao et al. 2023, SpecInfer,
sec. 4.2) and has its depth as position. What a whole batch of trees has in common is computed once and
cached. The result is that of one forward pass a row, up to rounding.

Names carry shapes: B trees, T nodes of the widest tree, S cached columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from solon.engines.prefix import extend
from solon.engines.shared_start import additive

# Attention within a packed row is quadratic, so a tree may only be as wide as what it saves is worth: rows of
# a few dozen tokens share little, sixteen questions about one pair of answers nearly all.
TREE_TOKENS = 1024
_SHORT_TREE, _ROWS_WIDE = 256, 3
WORTH = 8  # Starts shorter than this are not worth a branch: they are a chat template's first tokens.


@dataclass(frozen=True)
class Tree:
    """Rows packed into one. `ids[n]` is the token of node n, and `depths[n]` its place in its row.

    `rows` are the indices of the packed rows, and `paths` the nodes of each one's tokens, first to last.
    """

    ids: tuple[int, ...]
    depths: tuple[int, ...]
    rows: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    def sees(self) -> Tensor:
        """bool [nodes, nodes]: whether a node (first axis) attends to another: its ancestors and itself."""
        seen = torch.zeros(len(self.ids), len(self.ids), dtype=torch.bool)
        done = 0
        for path in self.paths:
            old = [node for node in path if node < done]
            new = len(path) - len(old)
            seen[done : done + new, old] = True
            seen[done : done + new, done : done + new] = torch.ones(new, new, dtype=torch.bool).tril()
            done += new
        return seen


def plant(rows: Sequence[Sequence[int]], most: int = TREE_TOKENS, share: bool = True) -> list[Tree]:
    """All rows, packed into trees of at most `most` nodes (a longer row stands alone).

    Which rows meet depends on their content alone. Without `share` every row is its own tree.
    """
    trees: list[_Growing] = []
    for index in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        row = tuple(rows[index])
        if not (share and trees and trees[-1].takes(row, most)):
            trees.append(_Growing())
        trees[-1].add(index, row)
    return [tree.grown() for tree in trees]


class _Growing:
    """A tree to which rows are added in sorted order, so that the last one shares the most."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._depths: list[int] = []
        self._rows: list[int] = []
        self._paths: list[tuple[int, ...]] = []
        self._last: tuple[int, ...] = ()

    def takes(self, row: tuple[int, ...], most: int) -> bool:
        shared = _common(self._last, row)
        width = min(most, max(_SHORT_TREE, _ROWS_WIDE * len(row)))
        return shared >= max(WORTH, len(row) // 4) and len(self._ids) + len(row) - shared <= width

    def add(self, index: int, row: tuple[int, ...]) -> None:
        shared = _common(self._last, row)
        first = len(self._ids)
        kept = self._paths[-1][:shared] if self._paths else ()
        self._ids.extend(row[shared:])
        self._depths.extend(range(shared, len(row)))
        self._rows.append(index)
        self._paths.append((*kept, *range(first, len(self._ids))))
        self._last = row

    def grown(self) -> Tree:
        return Tree(tuple(self._ids), tuple(self._depths), tuple(self._rows), tuple(self._paths))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two rows have in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def common_start(trees: Sequence[Tree], most: int) -> int:
    """How many first tokens all rows of all trees share, `most` at the most."""
    first = trees[0]
    shared = most
    for tree in trees:
        for path in (tree.paths[0], tree.paths[-1]):
            shared = _common([first.ids[n] for n in first.paths[0]][:shared], [tree.ids[n] for n in path])
    return shared if shared >= WORTH else 0


@dataclass(frozen=True)
class Packed:
    """A batch of trees as the arguments of a forward pass, and where their nodes lie in it.

    Node n of a tree stands in column n - start of the tree's row; the first `start` nodes are cached.
    """

    arguments: dict[str, Any]
    start: int


@torch.no_grad()
def pack(model: Any, trees: Sequence[Tree], start: int, fill: int) -> Packed:
    """Lay trees out as the rows of one forward pass, after computing their common start."""
    width = max(len(tree.ids) for tree in trees) - start
    ids_BT = torch.full((len(trees), width), fill)
    positions_BT = torch.zeros(len(trees), width, dtype=torch.int64)
    for row, tree in enumerate(trees):
        count = len(tree.ids) - start
        ids_BT[row, :count] = torch.tensor(tree.ids[start:])
        positions_BT[row, :count] = torch.tensor(tree.depths[start:])
    arguments = {"input_ids": ids_BT.to(model.device), "use_cache": False}
    if start or any(len(tree.rows) > 1 for tree in trees):
        arguments["position_ids"] = positions_BT.to(model.device)
        arguments["attention_mask"] = _mask(trees, start, width, model)
    # Else no mask: in a causal model nothing real sees the padding behind it.
    if start:
        arguments |= {"past_key_values": _cached(model, trees, start), "use_cache": True}
    return Packed(arguments, start)


def _mask(trees: Sequence[Tree], start: int, width: int, model: Any) -> Tensor:
    """Additive mask [B, 1, T, S + T] in the model's type; padding sees itself, so that nothing is 0 / 0."""
    seen_BTT = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        count = len(tree.ids) - start
        seen_BTT[row, :count, :count] = tree.sees()[start:, start:]
    seen_BTC = torch.nn.functional.pad(seen_BTT, (start, 0), value=True)
    return additive(seen_BTC, model.dtype).unsqueeze(1).to(model.device)


def _cached(model: Any, trees: Sequence[Tree], start: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([[trees[0].ids[n] for n in trees[0].paths[0][:start]]])
    extend(model, cache, ids, torch.ones_like(ids))
    cache.batch_repeat_interleave(len(trees))
    return cache
