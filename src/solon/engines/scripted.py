"""An engine whose answers are a function: for tests of everything that stands on an engine.

Tokens are the words between spaces. It is deterministic and counts tokens as the local engine does.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
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
from solon.errors import RunError

END = 0

Reply = Callable[[GenerateRequest], str]
Logprobs = Callable[[ScoreRequest], Sequence[float]]
Hidden = Callable[[ScoreRequest, float], Sequence[float]]


class ScriptedEngine:
    """Implements `Engine` and `HiddenStates`. A request without its function raises RunError."""

    def __init__(
        self,
        reply: Reply | None = None,
        logprobs: Logprobs | None = None,
        hidden: Hidden | None = None,
        name: str = "scripted",
        context: int | None = None,
    ) -> None:
        self.tokens_generated = 0
        self.tokens_read = 0
        self._reply, self._logprobs, self._hidden = reply, logprobs, hidden
        self._name = name
        self.context = context

    @property
    def name(self) -> str:
        return self._name

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        if self._reply is None:
            raise RunError(f"{self.name} has no reply function and cannot generate.")
        for index, request in enumerate(requests):
            yield replace(self._cut(request, self._reply(request)), index=index)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        if self._logprobs is None:
            raise RunError(f"{self.name} has no logprobs function and cannot score.")
        self._read(requests)
        for index, request in enumerate(requests):
            yield Score(tuple(self._logprobs(request)), index=index)

    def option_logprobs(self, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
        return options_by_score(self, requests)

    def hidden_features(
        self, requests: Sequence[ScoreRequest], layers: Sequence[float], poolings: Sequence[Pooling]
    ) -> NDArray[np.float32]:
        """The function's features at each layer, the same for every pooling."""
        if self._hidden is None:
            raise RunError(f"{self.name} has no hidden function and has no hidden states.")
        self._read(requests)
        rows = [[[self._hidden(r, layer)] * len(poolings) for layer in layers] for r in requests]
        return np.array(rows, dtype=np.float32)

    def length(self, conversation: Conversation) -> int:
        return _count(conversation)

    def _cut(self, request: GenerateRequest, text: str) -> Completion:
        """A reply of `max_tokens` words or more is cut and never reaches its end token."""
        words = text.split()
        prompt_tokens = _count(request.conversation)
        self.tokens_read += prompt_tokens
        ids = tuple(_token(word) for word in words[: request.sampling.max_tokens])
        if len(words) >= request.sampling.max_tokens:
            self.tokens_generated += len(ids)
            return Completion(" ".join(words[: len(ids)]), ids, "length", prompt_tokens, len(ids))
        self.tokens_generated += len(ids) + 1
        return Completion(text.strip(), (*ids, END), "stop", prompt_tokens, len(ids) + 1)

    def _read(self, requests: Sequence[ScoreRequest]) -> None:
        for request in requests:
            if not request.continuation.split():
                raise RunError(f"{self.name}: an empty continuation cannot be scored.")
            self.tokens_read += _count(request.conversation) + len(request.continuation.split())


def _token(word: str) -> int:
    return 1 + zlib.crc32(word.encode())


def _count(conversation: Conversation) -> int:
    return sum(len(message.content.split()) for message in conversation)
