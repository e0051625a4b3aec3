"""Generation, token by token, on a transformers model: `generate` without what a chat answer never needs.

Three things make it faster than `generate`: keys and values go into buffers reserved for the whole answer
instead of being copied at every token, rows that have ended leave the batch, and the masks are made once.

Names carry shapes: B rows, T columns (prompt and answer), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from solon.engines.hooks import before_head, divided
from solon.engines.prefix import prefill
from solon.engines.trees import shares_starts
from solon.training.losses import token_logprobs

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(logits [B, V], indices of these rows among all [B], number of the new token) -> token ids [B]."""


@dataclass
class Decoded:
    """The new tokens of a prompt, and the log-probability of each under the model (nats)."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


_LEAVE = 0.25  # Rows leave once this share of the batch has ended: leaving copies the others' cache.


def decode(
    model: Any, prompts: Sequence[tuple[int, ...]], ends: Sequence[int], most: int, choose: Choose
) -> list[Decoded]:
    """The new tokens of each prompt, up to and with its first end token, `most` at the most."""
    # Weights gathered in inference mode could not be trained through afterwards.
    with torch.no_grad() if divided(model) else torch.inference_mode():
        return _decode(model, prompts, ends, most, choose)


def _decode(
    model: Any, prompts: Sequence[tuple[int, ...]], ends: Sequence[int], most: int, choose: Choose
) -> list[Decoded]:
    batch = _Batch(model, prompts, ends[0], most)
    found = [Decoded() for _ in prompts]
    logits_BV = batch.prefill()
    for number in range(most):
        tokens_B = choose(logits_BV, batch.rows_B, number)
        logp_B = token_logprobs(logits_BV, tokens_B, 1.0)
        new = zip(batch.rows_B.tolist(), tokens_B.tolist(), logp_B.tolist(), strict=True)
        open_B = [_note(found[row], token, logp, ends) for row, token, logp in new]
        if not any(open_B) or number + 1 == most:
            break
        ended = len(open_B) - sum(open_B)
        if ended >= _LEAVE * len(open_B):
            kept_B = torch.tensor(open_B, device=model.device).nonzero().squeeze(-1)
            batch.keep(kept_B)
            tokens_B = tokens_B[kept_B]
        logits_BV = batch.forward(tokens_B)
    return found


def _note(answer: Decoded, token: int, logprob: float, ends: Sequence[int]) -> bool:
    """Add the row's token, unless the row has ended; whether the row is still open."""
    if not (answer.ids and answer.ids[-1] in ends):
        answer.ids.append(token)
        answer.logprobs.append(logprob)
    return answer.ids[-1] not in ends


class _Batch:
    """The rows that are being answered: their cache, masks and positions."""

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], pad: int, most: int) -> None:
        self._model = model
        self._layout, self._cache = prefill(model, prompts, pad)
        device = model.device
        self.rows_B = torch.arange(len(prompts), device=device)
        mask_BT = self._layout.mask_BT.bool()
        new_BT = torch.ones(len(prompts), most, dtype=torch.bool)
        self._seen_BT = torch.cat([mask_BT, new_BT], dim=1).to(device)
        self._positions_BT = (self._seen_BT.long().cumsum(1) - 1).clamp(min=0)
        self._whole = bool(mask_BT.all())
        self._full = shares_starts(model)
        self._column = mask_BT.shape[1]
        if self._full:
            _reserve(self._cache, most)

    def prefill(self) -> Tensor:
        """Compute the prompts' columns that are not cached yet; the logits after the last, [B, V]."""
        start, width = self._cache.get_seq_length(), self._column
        where = (torch.arange(len(self.rows_B)), torch.full((len(self.rows_B),), width - start - 1))
        # Through the hook: the head on a slice of the hidden states would copy its weights for every row.
        with before_head(self._model, where):
            output = self._model(
                input_ids=self._layout.ids_BT[:, start:].to(self._model.device),
                attention_mask=None if self._whole and not start else self._seen_BT[:, :width].long(),
                position_ids=self._positions_BT[:, start:width],
                past_key_values=self._cache,
                use_cache=True,
            )
        logits_BV: Tensor = output.logits[0]
        return logits_BV

    def forward(self, tokens_B: Tensor) -> Tensor:
        """Append one token to every row; the logits after it, [B, V]."""
        column = self._column
        self._column += 1
        output = self._model(
            input_ids=tokens_B[:, None],
            attention_mask=self._mask(column + 1),
            position_ids=self._positions_BT[:, column : column + 1],
            past_key_values=self._cache,
            use_cache=True,
        )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def keep(self, kept_B: Tensor) -> None:
        """Go on with these of the rows alone."""
        self._cache.batch_select_indices(kept_B)
        self.rows_B = self.rows_B[kept_B]
        self._seen_BT = self._seen_BT[kept_B]
        self._positions_BT = self._positions_BT[kept_B]

    def _mask(self, width: int) -> Tensor | None:
        """Nothing where every row sees every column; models that see less make their own masks."""
        if self._whole:
            return None
        seen_BT = self._seen_BT[:, :width]
        return seen_BT[:, None, None, :] if self._full else seen_BT.long()


class _Reserved(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer as the first columns of buffers that have room for the answer."""

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None
        if layer.is_initialized and layer.get_seq_length():
            self.lazy_initialization(layer.keys, layer.values)
            self._store(layer.keys, layer.values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start, count = self.get_seq_length(), key_states.shape[-2]
        if self._buffers is None or start + count > self._buffers[0].shape[-2]:
            self._store(*super().update(key_states, value_states))
        else:
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[..., start : start + count, :] = new
            self._show(start + count)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._buffers is not None:
            width = self.get_seq_length()
            self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
            self._show(width)

    def _store(self, keys: Tensor, values: Tensor) -> None:
        """New buffers that begin with these columns."""
        self._buffers = (_with_room(keys, self._room), _with_room(values, self._room))
        self._show(keys.shape[-2])

    def _show(self, width: int) -> None:
        assert self._buffers is not None
        self.keys = self._buffers[0][..., :width, :]
        self.values = self._buffers[1][..., :width, :]


def _with_room(x: Tensor, room: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, room))


def _reserve(cache: DynamicCache, room: int) -> None:
    """Let every layer of the cache have room for `room` more columns."""
    cache.layers = [_Reserved(layer, room) for layer in cache.layers]
