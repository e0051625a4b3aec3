"""The interface to a language model: requests in, results out as they finish.

Stages never batch by hand. Every generation request carries its own seed, so that a result can be made
again alone. A result names its request's place, and `completions` and `scores` bring all of them into the
order of the requests. Engines raise `solon.errors.RunError` when the model cannot answer; they never make a
text up.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from solon.errors import RunError
from solon.records import Finish
from solon.settings import Sampling

Pooling = Literal["mean", "last", "start"]
START_TOKENS = 16


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class GenerateRequest:
    """Ask for the assistant's next turn. `seed` alone decides what is sampled.

    `sentences` says that the caller keeps no more than so many leading ones (`solon.text.leading_sentences`):
    an engine may stop, with finish "length", once they stand fast.
    """

    conversation: Conversation
    sampling: Sampling
    seed: int
    sentences: int | None = None


@dataclass(frozen=True)
class Completion:
    """A generated turn.

    `token_ids` includes what ended the turn if `finish` is "stop" (the end-of-turn token; in a plain
    transcript it may be the beginning of the next question, which `text` lacks), and `logprobs` are their
    log-probabilities in nats under the model itself (temperature 1, no top-p). A server may tell neither:
    both are then empty. `prompt_tokens` and `new_tokens` are the usage, `index` the request's place.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    new_tokens: int
    logprobs: tuple[float, ...] = field(default=(), compare=False)
    index: int = field(default=0, compare=False)


@dataclass(frozen=True)
class ScoreRequest:
    """Ask how likely `continuation` is as (the start of) the assistant's next turn."""

    conversation: Conversation
    continuation: str


@dataclass(frozen=True)
class OptionRequest:
    """Ask which of `options` follows the conversation; `start` is what the assistant has said already."""

    conversation: Conversation
    start: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """Log-probability in nats of every token of the continuation given all before it.

    `token_ids` are these tokens, empty where a server does not tell them, `prompt_tokens` how many stand
    before them, `index` the request's place.
    """

    logprobs: tuple[float, ...]
    token_ids: tuple[int, ...] = field(default=(), compare=False)
    prompt_tokens: int = field(default=0, compare=False)
    index: int = field(default=0, compare=False)

    @property
    def total(self) -> float:
        return sum(self.logprobs)


class Engine(Protocol):
    """A language model that generates and scores. `name` identifies it in the rows it writes.

    `context` is how many tokens it can hold, None where that is not known; `length` counts those of a
    conversation. The two counters grow with the work done.
    """

    context: int | None

    @property
    def tokens_generated(self) -> int: ...

    @property
    def tokens_read(self) -> int: ...

    @property
    def name(self) -> str: ...

    def length(self, conversation: Conversation) -> int: ...

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        """The next turns, each as soon as it is finished, every request's exactly once."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-probabilities of the continuations, each as soon as it is known."""
        ...

    def option_logprobs(self, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
        """Log-probability in nats of each option, up to a constant of the request.

        None where the engine did not tell it of every option of a request.

        Raises:
            LogprobsUnavailableError: the engine never gives any.
        """
        ...


@runtime_checkable
class HiddenStates(Protocol):
    """A model whose hidden states can be read."""

    def hidden_features(
        self, requests: Sequence[ScoreRequest], layers: Sequence[float], poolings: Sequence[Pooling]
    ) -> NDArray[np.float32]:
        """Hidden states of each continuation, [len(requests), layers, poolings, width].

        A layer is a depth between 0 (embeddings) and 1 (last block), rounded to a block. The pooling is
        over the continuation's tokens: their mean, the last one, or the mean of the first `START_TOKENS`.
        """
        ...


@runtime_checkable
class ReadableEngine(Engine, HiddenStates, Protocol):
    """An engine on a model in this process, whose hidden states can be read too."""


Result = TypeVar("Result", Completion, Score)


def used_by(*engines: Engine) -> Callable[[], int]:
    """Tells the tokens that these engines, each counted once, have read and generated so far.

    An engine may serve several stages: what one of them used is a difference.
    """
    different = {id(engine): engine for engine in engines}.values()
    return lambda: sum(engine.tokens_read + engine.tokens_generated for engine in different)


def completions(engine: Engine, requests: Sequence[GenerateRequest]) -> list[Completion]:
    """All completions in the order of the requests. Errors are the engine's."""
    return _in_order(engine.generate(requests), len(requests))


def scores(engine: Engine, requests: Sequence[ScoreRequest]) -> list[Score]:
    """All scores in the order of the requests. Errors are the engine's."""
    return _in_order(engine.score(requests), len(requests))


def _in_order(results: Iterable[Result], count: int) -> list[Result]:
    found: dict[int, Result] = {}
    for result in results:
        if result.index in found:
            raise RunError(f"the engine answers request {result.index} twice.")
        found[result.index] = result
    if len(found) != count:
        raise RunError(f"the engine answers {len(found)} of {count} requests.")
    return [found[index] for index in range(count)]


def options_by_score(engine: Engine, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
    """`option_logprobs` for an engine that can score any text.

    Options are read up to where they first differ: of "(A)" and "(B)" the letter decides, not how sure the
    bracket behind it is.
    """
    scored = [
        ScoreRequest(r.conversation, r.start + option[: first_difference(r.options) + 1])
        for r in requests
        for option in r.options
    ]
    totals = iter([score.total for score in scores(engine, scored)])
    return [tuple(next(totals) for _ in r.options) for r in requests]


def first_difference(options: Sequence[str]) -> int:
    """The first place at which the options differ."""
    places = enumerate(zip(*options, strict=False))
    return next((i for i, letters in places if len(set(letters)) > 1), min(map(len, options)) - 1)


def user(text: str) -> Conversation:
    """A conversation of one question."""
    return (Message("user", text),)
