"""An engine on a transformers model in this process: generates, scores and reads hidden states.

Requests are batched by like length within a budget of tokens. Lengths are explicit everywhere: the pad
token may be the end token, and a mask made from ids would hide real ends. Batches are put together from
the requests' content, so results do not depend on their order; in float32 they do not depend on the batch.
Scoring and reading hidden states is `engines.reader`'s work.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from solon.engines.base import (
    Completion,
    Conversation,
    GenerateRequest,
    OptionRequest,
    Pooling,
    Score,
    ScoreRequest,
    options_by_score,
)
from solon.engines.decode import Decoded, decode, finds_starts
from solon.engines.packed import packed
from solon.engines.prefix import common_start
from solon.engines.reader import Reader
from solon.engines.sampling import Chooser
from solon.engines.shared_start import WORTH
from solon.engines.turns import Turns
from solon.errors import RunError, UsageError
from solon.models import ModelSource, load_model, load_tokenizer
from solon.settings import Sampling
from solon.text import HALF, says_enough
from solon.training.batching import budget_batches
from solon.training.encoding import Encoded

_LOOK = 4  # New tokens after which it is looked whether a row's sentences are full: to look takes time
_TOGETHER = 2048  # Tokens of prompts that are computed together: the products run at full speed with less
_CACHED = 4  # Cached tokens, keys and values alone, that weigh as much as one that is being computed.


@dataclass(frozen=True)
class _Prompt:
    """A generation request as token ids, and its place among the requests."""

    ids: tuple[int, ...]
    seed: int
    index: int
    sentences: int | None


def context_of(model: Any) -> int | None:
    """A model's context in tokens, as its configuration has it; None if it names none."""
    found: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found


class LocalEngine:
    """Implements `Engine` and `HiddenStates` of `solon.engines.base`.

    `tokens_generated` and `tokens_read` count since the start, prompts and scored texts as read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        batch_tokens: int = 8192,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.tokens_generated = 0
        self.tokens_read = 0
        self._batch_tokens = batch_tokens
        self._ends = end_tokens(model, tokenizer)
        self._reader = Reader(model, self._ends[0], batch_tokens)
        self.context = context_of(model)
        self._turns = Turns(tokenizer, name, self.context)

    @property
    def name(self) -> str:
        return self._turns.name

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        """The next turns, batch by batch, short prompts first.

        Raises:
            UsageError: a prompt and its new tokens do not fit into the model's context.
            RunError: the model's logits are not numbers.
        """
        for sampling in dict.fromkeys(request.sampling for request in requests):
            prompts = [
                _Prompt(self._turns.prompt(r.conversation, sampling.max_tokens), r.seed, index, r.sentences)
                for index, r in enumerate(requests)
                if r.sampling == sampling
            ]
            prompts.sort(key=lambda p: (len(p.ids), p.ids, p.seed))
            kept = self._kept_once([p.ids for p in prompts])
            lengths = [_weight(len(p.ids), kept, sampling.max_tokens) for p in prompts]
            for batch in budget_batches(lengths, self._batch_tokens):
                chosen = [prompts[i] for i in batch]
                # Not around the yield: the caller may train the model before it takes the next.
                with packed(self.model, sampling.max_tokens):
                    completions = self._generate(chosen, sampling)
                yield from completions

    def _kept_once(self, rows: Sequence[tuple[int, ...]]) -> int:
        """How many first tokens every batch of these prompts keeps once, and not in every row."""
        shared = common_start(rows) if finds_starts(self.model) else 0
        return shared if shared >= WORTH else 0

    def _generate(self, prompts: Sequence[_Prompt], sampling: Sampling) -> list[Completion]:
        chooser = Chooser(sampling, [p.seed for p in prompts], self.model.device)
        ids, most = [p.ids for p in prompts], sampling.max_tokens

        def enough(row: int, new: Sequence[int]) -> bool:
            return len(new) % _LOOK == 0 and self._is_enough(new, prompts[row].sentences)

        found = decode(self.model, ids, self._ends, most, chooser, enough, min(_TOGETHER, self._batch_tokens))
        if chooser.broken:
            raise self._not_numbers()
        return [self._completion(p, new) for p, new in zip(prompts, found, strict=True)]

    def _is_enough(self, new: Sequence[int], sentences: int | None) -> bool:
        if self._turns.begins_question(new):
            return True
        # Half of a character at the end is none yet. Other tokens are taken to add to the text.
        return sentences is not None and says_enough(self._turns.text(new).rstrip(HALF), sentences)

    def _completion(self, prompt: _Prompt, new: Decoded) -> Completion:
        self.tokens_generated += len(new.ids)
        self.tokens_read += len(prompt.ids)
        answer = self._turns.answer(new.ids, new.ids[-1] in self._ends)
        return Completion(
            answer.text,
            tuple(new.ids[: answer.tokens]),
            answer.finish,
            len(prompt.ids),
            answer.tokens,
            tuple(new.logprobs[: answer.tokens]),
            prompt.index,
        )

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-probabilities of the continuations' tokens, without an end token, batch by batch.

        Raises:
            UsageError: a text does not fit into the model's context.
            RunError: a continuation has no token, or the model's logits are not numbers.
        """
        rows = self._rows(requests)
        for index, logp in self._reader.logprobs(rows):
            if not bool(logp.isfinite().all()):
                raise self._not_numbers()
            row = rows[index]
            yield Score(tuple(logp.tolist()), row.answer, len(row.prompt), index)

    def option_logprobs(self, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
        """Log-probabilities of options by scoring them.

        Raises:
            RunError: the tokenizer writes two options with the same tokens; else as in `score`.
        """
        self._turns.check_options(requests)
        return options_by_score(self, requests)

    def hidden_features(
        self, requests: Sequence[ScoreRequest], layers: Sequence[float], poolings: Sequence[Pooling]
    ) -> NDArray[np.float32]:
        """Hidden states of each continuation, float32 [len(requests), layers, poolings, width].

        Raises:
            UsageError: a text does not fit into the context, or a layer is not between 0 and 1.
            RunError: a continuation has no token, or the hidden states are not numbers.
        """
        wrong = [layer for layer in layers if not 0 <= layer <= 1]
        if wrong:
            raise UsageError(f"layer is {wrong[0]}: give a depth between 0 (embeddings) and 1 (last block).")
        found = self._reader.features(self._rows(requests), layers, poolings)
        if not np.isfinite(found).all():
            raise self._not_numbers()
        return found

    def length(self, conversation: Conversation) -> int:
        """Tokens of the conversation up to the assistant's header."""
        return len(self._turns.ids(conversation))

    def _rows(self, requests: Sequence[ScoreRequest]) -> list[Encoded]:
        rows = [self._turns.row(request) for request in requests]
        self.tokens_read += sum(len(row.ids) for row in rows)
        return rows

    def _not_numbers(self) -> RunError:
        return RunError(
            f"{self.name} computes values that are no numbers. Its weights are damaged, or overflow in "
            f"{self.model.dtype}: try dtype: float32."
        )


def _weight(prompt: int, kept: int, new: int) -> int:
    """Tokens of the budget that a row takes: all are cached, and a prompt's are computed with all others'.

    Beside a start that is kept once, prompts are computed a few at a time.
    """
    return max(0 if kept else prompt, math.ceil((prompt - kept + new) / _CACHED))


def open_engine(source: ModelSource, device: str, dtype: torch.dtype, batch_tokens: int) -> LocalEngine:
    """An engine on a model that is loaded for it alone. Errors are those of `solon.models.load_model`."""
    return LocalEngine(load_model(source, device, dtype), load_tokenizer(source), source.name, batch_tokens)


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a turn, the tokenizer's own first: chat models may name several."""
    named = getattr(model.generation_config, "eos_token_id", None)
    more = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *(int(token) for token in more)]))
