"""Generation, token by token, on a transformers model: `generate` without what a chat answer never needs.

Four things make it faster than `generate`: keys and values go into buffers reserved for the whole answer
instead of being copied at every token, a start that all prompts share is kept once, rows that have ended
leave the batch, and the masks are made once.

Names carry shapes: B rows, T columns (prompt and answer), V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from solon.engines.hooks import before_head, divided, shares_starts
from solon.engines.prefix import Filled, prefill
from solon.engines.shared_start import WORTH, additive, keeps_apart, start_apart
from solon.training.losses import token_logprobs

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(logits [B, V], indices of these rows among all [B], number of the new token) -> token ids [B]."""

Enough = Callable[[int, Sequence[int]], bool]
"""(index of a row among all, its new tokens so far) -> whether the row may stop without an end token."""


@dataclass
class Decoded:
    """A prompt's new tokens, the log-probability of each under the model (nats), and whether more come."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    open: bool = True


_CHOSEN = 64  # Rows of logits that are looked at together on a CPU: what is computed of them then stays near
_finds_starts: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_LEAVE = 0.25  # Rows leave once this share of the batch has ended: leaving copies the others' cache.


def _never(row: int, ids: Sequence[int]) -> bool:
    return False


class _Batch:
    """The rows that are being answered: their cache, masks and positions."""

    def __init__(self, model: Any, filled: Filled, most: int) -> None:
        self._model = model
        self._layout, self._cache, self._kept = filled.layout, filled.cache, filled.kept
        device = model.device
        count = len(self._layout.ids_BT)
        self.rows_B = torch.arange(count, device=device)
        mask_BT = self._layout.mask_BT.bool()
        new_BT = torch.ones(count, most, dtype=torch.bool)
        self._seen_BT = torch.cat([mask_BT, new_BT], dim=1).to(device)
        self._positions_BT = (self._seen_BT.long().cumsum(1) - 1).clamp(min=0)
        self._whole = bool(mask_BT.all())
        self._full = shares_starts(model)
        self._added_BC = additive(self._seen_BT[:, self._kept :], model.dtype)
        self._column = mask_BT.shape[1]

    @property
    def start_is_read(self) -> bool:
        """Whether every block's attention has found the start that lies apart, if one does."""
        return not self._kept or all(layer.start.read for layer in self._cache.layers)

    def prefill(self) -> Tensor:
        """Compute the prompts' columns that are not cached yet; the logits after the last, [B, V]."""
        start, width = self._cache.get_seq_length(), self._column
        where = (torch.arange(len(self.rows_B)), torch.full((len(self.rows_B),), width - start - 1))
        # Through the hook: the head on a slice of the hidden states would copy its weights for every row.
        with before_head(self._model, where):
            output = self._model(
                input_ids=self._layout.ids_BT[:, start:].to(self._model.device),
                attention_mask=self._prompt_mask(start, width),
                position_ids=self._positions_BT[:, start:width],
                past_key_values=self._cache,
                use_cache=True,
            )
        logits_BV: Tensor = output.logits[0]
        return logits_BV

    def _prompt_mask(self, start: int, width: int) -> Tensor | None:
        if self._kept:  # Then the last column alone is missing
            return self._mask(width)
        return None if self._whole and not start else self._seen_BT[:, :width].long()

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
        self._cache.reorder_cache(kept_B)  # What selects rows by name leaves recurrent states out
        self.rows_B = self.rows_B[kept_B]
        self._seen_BT = self._seen_BT[kept_B]
        self._positions_BT = self._positions_BT[kept_B]
        self._added_BC = self._added_BC[kept_B]

    def _mask(self, width: int) -> Tensor | None:
        """Nothing where every row sees every column; models that see less make their own masks."""
        if self._whole:
            return None
        if not self._full:
            return self._seen_BT[:, :width].long()
        return self._added_BC[:, None, None, : width - self._kept]


def decode(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    ends: Sequence[int],
    most: int,
    choose: Choose,
    enough: Enough = _never,
    together: int = 2048,
) -> list[Decoded]:
    """The new tokens of each prompt, up to and with its first end token or until `enough`, at most `most`.

    Beside a start that is kept once, prompts of so many tokens are computed `together`.
    """
    apart = finds_starts(model)
    # Weights gathered in inference mode could not be trained through afterwards.
    with (
        torch.no_grad() if divided(model) else torch.inference_mode(),
        start_apart(model) if apart else nullcontext(),
    ):
        batch = _Batch(model, prefill(model, prompts, ends[0], most, apart, together), most)
        found = [Decoded() for _ in prompts]
        _go_on(batch, batch.prefill(), found, ends, most, choose, enough)
        return found


def finds_starts(model: Any) -> bool:
    """Whether a start can be kept apart from all rows: asked of each model once, with a few tokens.

    A model that changes cached keys before its attention sees them would miss it without a word.
    """
    if not keeps_apart(model):
        return False
    if model not in _finds_starts:
        rows = [(*[0] * WORTH, token, 0) for token in (0, 1)]
        with torch.inference_mode(), start_apart(model):
            batch = _Batch(model, prefill(model, rows, 0, 1, True, WORTH), 1)
            batch.prefill()
        _finds_starts[model] = batch.start_is_read
    return _finds_starts[model]


def _chosen(choose: Choose, logits_BV: Tensor, rows_B: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The rows' tokens [B] and their log-probabilities [B]."""
    together = _CHOSEN if logits_BV.device.type == "cpu" else len(rows_B)
    tokens, logps = [], []
    for logits_bV, rows_b in zip(*(torch.split(x, together) for x in (logits_BV, rows_B)), strict=True):
        tokens.append(choose(logits_bV, rows_b, number))
        logps.append(token_logprobs(logits_bV, tokens[-1], 1.0))
    return torch.cat(tokens), torch.cat(logps)


def _go_on(
    batch: _Batch,
    logits_BV: Tensor,
    found: Sequence[Decoded],
    ends: Sequence[int],
    most: int,
    choose: Choose,
    enough: Enough,
) -> None:
    for number in range(most):
        tokens_B, logp_B = _chosen(choose, logits_BV, batch.rows_B, number)
        rows = batch.rows_B.tolist()
        for row, token, logp in zip(rows, tokens_B.tolist(), logp_B.tolist(), strict=True):
            answer = found[row]
            if answer.open:
                answer.ids.append(token)
                answer.logprobs.append(logp)
                answer.open = token not in ends and not enough(row, answer.ids)
        open_B = [found[row].open for row in rows]
        if not any(open_B) or number + 1 == most:
            break
        ended = len(open_B) - sum(open_B)
        if ended >= _LEAVE * len(open_B):
            kept_B = torch.tensor(open_B, device=logits_BV.device).nonzero().squeeze(-1)
            batch.keep(kept_B)
            tokens_B = tokens_B[kept_B]
        logits_BV = batch.forward(tokens_B)
