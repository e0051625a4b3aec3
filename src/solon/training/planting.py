"""Episodes as the trees of one forward pass: what they have in common at their start is computed once.

The answers to one prompt share it, and short rows a chat template's header. In training as in reading
(`engines.trees`, which says what start is long enough) a common start then costs one pass forwards and one
backwards, and its gradient is the sum of all its rows'.

Names carry shapes: B trees, T nodes of the widest tree, N answer tokens of all episodes end to end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from solon.engines.hooks import shares_starts
from solon.engines.trees import TREE_TOKENS, Tree, pack, plant
from solon.training.encoding import Encoded


@dataclass(frozen=True)
class Planted:
    """A forward pass over some episodes: its arguments, and where each episode's tokens stand in it.

    `rows[i]` is the row of the pass that holds episode i, and `columns[i]` has a column for each token of it.
    """

    arguments: dict[str, Any]
    rows: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]

    def chosen_at(self, episodes: Sequence[Encoded], device: torch.device) -> tuple[Tensor, Tensor]:
        """Where the logits stand that predict the answer tokens, by episode, then by token.

        Returns:
            (row_N, column_N), int64.

        Raises:
            ValueError: a prompt is empty: nothing predicts the first token of its answer.
        """
        if not all(e.prompt for e in episodes):
            raise ValueError("a prompt is empty: nothing predicts the first token of its answer")
        told = zip(self.rows, self.columns, episodes, strict=True)
        at = [(row, c) for row, columns, e in told for c in columns[len(e.prompt) - 1 : len(columns) - 1]]
        row_N, column_N = torch.tensor(at, dtype=torch.int64, device=device).reshape(-1, 2).T
        return row_N, column_N


def planted(
    model: Any, rows: Sequence[Sequence[int]], entering: Callable[[Sequence[int]], Tensor] | None = None
) -> Planted:
    """Pack rows of token ids into one forward pass of `model`, of no more columns than the rows padded.

    Padding is on the right, where nothing real looks at it. Where the model's blocks look at columns and not
    positions, every row is a tree of its own, and there is no mask.

    Args:
        entering: gives the states [T, D] of a row's tokens that enter the model in place of embeddings.
    """
    trees = _trees(rows, shares_starts(model))
    arguments = pack(model, trees, 0, 0).arguments
    if entering is not None:
        del arguments["input_ids"]
        arguments["inputs_embeds"] = pad_sequence(
            [_states(t, rows, entering) for t in trees], batch_first=True
        )
    place = {
        i: (b, path) for b, tree in enumerate(trees) for i, path in zip(tree.rows, tree.paths, strict=True)
    }
    ordered = [place[i] for i in range(len(rows))]
    return Planted(arguments, tuple(b for b, _ in ordered), tuple(path for _, path in ordered))


def _trees(rows: Sequence[Sequence[int]], share: bool) -> list[Tree]:
    """Shared starts, unless that takes more columns than it saves, or a mask as wide as a very long row."""
    trees = plant(rows, share=share)
    width = max(len(tree.ids) for tree in trees)
    if width <= TREE_TOKENS and len(trees) * width < len(rows) * max(map(len, rows)):
        return trees
    return plant(rows, share=False)


def _states(tree: Tree, rows: Sequence[Sequence[int]], entering: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """The states of all nodes. A row's own nodes follow those of the rows before it, and end its path."""
    parts, done = [], 0
    for index, path in zip(tree.rows, tree.paths, strict=True):
        own = sum(node >= done for node in path)
        parts.append(entering(rows[index])[len(path) - own :])
        done += own
    return torch.cat(parts)
