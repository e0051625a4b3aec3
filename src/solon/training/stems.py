"""What no training changes is computed once a step: the blocks below a policy's first adapter.

An adapter on the upper blocks alone leaves the lower ones as they were, for the policy, its reference and its
critic alike. Their output for an episode, the stem, is the same in every epoch; kept, the epochs run and
differentiate the upper blocks only. Glaese et al. 2022 (Sparrow, arXiv 2209.14375) train the upper part of
their policy in this way, on a trunk that it shares with the value function.

Names carry shapes: T tokens of a row, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from solon.engines.hooks import blocks, divided, hidden_at
from solon.training.adapters import using
from solon.training.batching import budget_batches
from solon.training.planting import planted

_BATCH_TOKENS = 4096


class Stems:
    """The states that enter a model's block `depth`, of the rows that are held; none of them if it is 0."""

    def __init__(self, model: Any, depth: int) -> None:
        with using(model, None):
            self.depth = depth if depth and _can_start_at(model, depth) else 0
        self._model = model
        self._states: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def held(self, rows: Sequence[Sequence[int]]) -> Iterator[None]:
        """Hold these rows meanwhile; none where parts of the model lie on other processes."""
        if self.depth and not divided(self._model):
            self._states = self._read(list(dict.fromkeys(tuple(row) for row in rows)))
        try:
            yield
        finally:
            self._states = {}

    def covers(self, rows: Sequence[Sequence[int]]) -> bool:
        return bool(rows) and all(tuple(row) in self._states for row in rows)

    def of(self, row: Sequence[int]) -> Tensor:
        """[T, D]; KeyError for a row that is not held."""
        return self._states[tuple(row)]

    @torch.no_grad()
    def _read(self, rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        found: dict[tuple[int, ...], Tensor] = {}
        for batch in budget_batches([len(row) for row in rows], _BATCH_TOKENS):
            chosen = [rows[i] for i in batch]
            laid = planted(self._model, chosen)
            with using(self._model, None):
                forward = partial(self._model.base_model, **laid.arguments)
                [states] = hidden_at(self._model, [self.depth], forward)
            places = zip(chosen, laid.rows, laid.columns, strict=True)
            # Copies, by the list of columns: a view would keep the whole batch's tensor.
            found |= {row: states[b, list(columns)] for row, b, columns in places}
        return found


def depth_below(model: Any, adapter: str | None) -> int:
    """How many of the first blocks are the same with this adapter as without any: all of them for None."""
    layers = blocks(model)
    for depth, block in enumerate(layers):
        if any(isinstance(module, LoraLayer) and adapter in module.lora_A for module in block.modules()):
            return depth
    return len(layers)


@contextmanager
def skipping(model: Any, depth: int) -> Iterator[None]:
    """Let the first `depth` blocks hand on what enters them."""
    skipped = blocks(model)[:depth]
    for block in skipped:
        block.forward = _hand_on
    try:
        yield
    finally:
        for block in skipped:
            del block.forward


def _hand_on(hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
    return hidden_states


def _entering(model: Any, ids_BT: Tensor, *depths: int) -> list[Tensor]:
    """The states that enter these blocks; of their number, what leaves the last."""
    return hidden_at(model, depths, lambda: model.base_model(input_ids=ids_BT, use_cache=False))


@torch.no_grad()
def _can_start_at(model: Any, depth: int) -> bool:
    """Whether states that enter a block can be given in place of embeddings: shown by a trial.

    It cannot be where embeddings are scaled or have positions added, or blocks give more than states.
    """
    ids_BT = torch.arange(4, device=model.device).unsqueeze(0)
    layers, given = blocks(model), []
    handle = layers[0].register_forward_hook(lambda module, args, output: given.append(output))
    try:
        stem_BTD, whole_BTD = _entering(model, ids_BT, depth, len(layers))
    finally:
        handle.remove()
    if not isinstance(given[0], Tensor):
        return False
    with skipping(model, depth):
        upper_BTD = model.base_model(inputs_embeds=stem_BTD, use_cache=False).last_hidden_state
    return torch.equal(whole_BTD, upper_BTD)
