"""Reasons first, then the choice (Bai et al. 2022, sec. 4.1; Wei et al. 2022).

Several reasonings are sampled in both orders. After each, the options' log-probabilities are read; where an
engine gives none, the verdict is parsed from the text, and one that cannot be parsed counts for nothing.
Probabilities are clamped, by default to 0.4–0.6: a model that has argued itself into an answer gives it
nearly 1, which the paper found to train worse.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from solon.digest import seed_from
from solon.engines.base import Conversation, Engine, GenerateRequest, Message, completions
from solon.errors import LogprobsUnavailableError
from solon.feedback.base import Judgement, Question, fit_to_context, judged
from solon.feedback.choice import swapped
from solon.feedback.options import CHOICES, probabilities
from solon.settings import Sampling
from solon.templates import fill

_LEAD = "The better answer is "
# The letter in capitals: "the better answer is a short one" is no verdict.
_VERDICT = re.compile(r"(?i:better answer is):?\s*\**\(?([AB])\b")
_UNREAD = "no verdict could be read in any reply"


@dataclass(frozen=True)
class Thinking:
    """How reasons are sampled: `samples` in each order; probabilities are held within `clamp`."""

    sampling: Sampling
    samples: int
    clamp: tuple[float, float]
    seed: int


class ChainOfThoughtJudge:
    """Asks a model to think aloud before it chooses."""

    def __init__(self, engine: Engine, thinking: Thinking) -> None:
        self._engine = engine
        self._thinking = thinking

    @property
    def name(self) -> str:
        return f"chain_of_thought:{self._engine.name}"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        """Mean over samples and both orders of the clamped P(a); unscored where no verdict can be read."""
        return judged(questions, self._compare)

    def _compare(self, questions: Sequence[Question]) -> list[Judgement]:
        room = self._thinking.sampling.max_tokens + 16
        fitted = [fit_to_context(q, self._engine, _talk, room) for q in questions]
        asked = [q for q, problem, _ in fitted if problem is None]
        read = iter(self._read_all(asked))
        return [
            Judgement(None, problem) if problem else self._judgement(*next(read), truncated)
            for _, problem, truncated in fitted
        ]

    def _judgement(
        self, straight: Sequence[float | None], swapped_: Sequence[float | None], truncated: bool
    ) -> Judgement:
        """From P(first) of every sample, in the given order and in the other one."""
        with_a_first = [self._clamped(p) for p in straight if p is not None]
        with_a_second = [1.0 - self._clamped(p) for p in swapped_ if p is not None]
        if not with_a_first or not with_a_second:
            # One order alone would carry the position's preference into the label.
            return Judgement(None, _UNREAD, truncated=truncated)
        orders = (sum(with_a_first) / len(with_a_first), sum(with_a_second) / len(with_a_second))
        return Judgement(sum(orders) / 2, orders=orders, truncated=truncated)

    def _clamped(self, p: float) -> float:
        low, high = self._thinking.clamp
        return min(max(p, low), high)

    def _read_all(
        self, questions: Sequence[Question]
    ) -> list[tuple[Sequence[float | None], Sequence[float | None]]]:
        count = self._thinking.samples
        requests = [
            GenerateRequest(_talk(order), self._thinking.sampling, self._seed(order, number))
            for question in questions
            for order in (question, swapped(question))
            for number in range(count)
        ]
        replies = [completion.text for completion in completions(self._engine, requests)]
        firsts = self._verdicts([(r.conversation, reply) for r, reply in zip(requests, replies, strict=True)])
        rows = [firsts[start : start + count] for start in range(0, len(firsts), count)]
        return list(zip(rows[::2], rows[1::2], strict=True))

    def _seed(self, order: Question, number: int) -> int:
        return seed_from(self._thinking.seed, order.principle.id, order.dialogue, order.a, order.b, number)

    def _verdicts(self, replies: Sequence[tuple[Conversation, str]]) -> list[float | None]:
        """P(first answer) after each reply; None for an empty one, which has given no reasons."""
        said = [(conversation, _reasons(reply)) for conversation, reply in replies if reply.strip()]
        try:
            read = iter(probabilities(self._engine, said, CHOICES)[:, 0].tolist())
        except LogprobsUnavailableError:
            return [parse_verdict(reply) for _, reply in replies]
        found = [next(read) if reply.strip() else math.nan for _, reply in replies]
        return [None if math.isnan(p) else p for p in found]


def parse_verdict(reply: str) -> float | None:
    """1 for (A), 0 for (B), by the last verdict in the text; None if there is none."""
    found = _VERDICT.findall(reply)
    return None if not found else float(found[-1] == "A")


def _reasons(reply: str) -> str:
    """The reply up to its own, last verdict, with the words that lead to an option."""
    verdicts = list(_VERDICT.finditer(reply))
    before = reply[: verdicts[-1].start()] if verdicts else reply
    # "The" of "The better answer is" would stand twice.
    reasons = re.sub(r"\b[Tt]he\s*$", "", before).strip()
    return f"{reasons}\n\n{_LEAD}" if reasons else _LEAD


def _talk(question: Question) -> Conversation:
    text = fill(
        "chain_of_thought",
        dialogue=question.dialogue,
        a=question.a,
        b=question.b,
        question=question.principle.question,
    )
    return (Message("user", text),)
