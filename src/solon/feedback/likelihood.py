"""How much likelier a principle makes an answer: log p(answer | principle) less log p(answer).

A model that cannot choose between (A) and (B) still continues a rule with texts that fit it. The gain of an
answer is measured against the conversation alone or, with `contrary`, against the same rule turned round,
which cancels what any rule at all does to the text. Gains are summed over the tokens, averaged, or summed
over the first tokens; of several allowed readings the constitution's own comparisons decide which.

Names carry shapes: T tokens of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from solon.constitution import Principle
from solon.engines.base import START_TOKENS, Conversation, Engine, Message, ScoreRequest, scores
from solon.feedback.base import Judgement, Question, fit_to_context, judged, sigmoid
from solon.templates import fill

Reduction = Literal["sum", "mean", "first"]
Against = Literal["nothing", "contrary"]
Rule = Literal["nothing", "follow", "break"]
"""What stands before the conversation: nothing, the principle, or its contrary."""


@dataclass(frozen=True)
class Reading:
    """How token log-probabilities become one gain."""

    reduction: Reduction
    against: Against


class LikelihoodJudge:
    """Compares two answers by how much a principle raises their likelihood."""

    def __init__(
        self, engine: Engine, readings: Sequence[Reading], known: Sequence[Question], folds: Sequence[int]
    ) -> None:
        """Choose among `readings` by `known` questions, whose answer a is better; `folds` are theirs."""
        self._engine = engine
        self._readings = tuple(readings)
        self._folds = np.array(folds, dtype=np.int64)
        self._known = self.gains(known, readings) if len(readings) > 1 else None
        self._asked = tuple(known)
        self.reading = self._best(np.ones(len(known), dtype=bool))

    @property
    def name(self) -> str:
        return f"likelihood:{self._engine.name}"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        """sigmoid(gain of a - gain of b); the scale is arbitrary and is what calibration is for."""
        return judged(questions, self._compare)

    def _compare(self, questions: Sequence[Question]) -> list[Judgement]:
        fitted = [fit_to_context(q, self._engine, _longest, beside=(q.a, q.b)) for q in questions]
        asked = [q for q, problem, _ in fitted if problem is None]
        gains = iter(self.gains(asked, [self.reading])[:, 0].tolist())
        return [
            Judgement(None, problem) if problem else Judgement(sigmoid(next(gains)), truncated=truncated)
            for _, problem, truncated in fitted
        ]

    def held_out(self) -> list[float | None]:
        """P(a) of the known questions, each by the reading that the other folds chose."""
        gains = self.gains(self._asked, self._readings) if self._known is None else self._known
        p_n = np.zeros(len(gains))
        for fold in np.unique(self._folds):
            test = self._folds == fold
            column = self._readings.index(self._best(~test))
            p_n[test] = [sigmoid(float(gain)) for gain in gains[test, column]]
        return [float(p) for p in p_n]

    def _best(self, by: NDArray[np.bool_]) -> Reading:
        """The reading that is right most often on the known questions of `by`; the first of equals."""
        if self._known is None or not by.any():
            return self._readings[0]
        return self._readings[int(np.argmax((self._known[by] > 0).sum(0)))]

    def gains(self, questions: Sequence[Question], readings: Sequence[Reading]) -> NDArray[np.float64]:
        """Gain of a less gain of b in nats, [questions, readings]."""
        contrary = any(r.against == "contrary" for r in readings)
        rules: tuple[Rule, ...] = ("nothing", "follow", "break") if contrary else ("nothing", "follow")
        asked = list(product(questions, ("a", "b"), rules))
        found = scores(self._engine, score_requests(questions, rules))
        logp = {key: np.array(score.logprobs) for key, score in zip(asked, found, strict=True)}

        def gain(question: Question, side: str, reading: Reading) -> float:
            base: Rule = "break" if reading.against == "contrary" else "nothing"
            gain_T = logp[question, side, "follow"] - logp[question, side, base]
            return _reduce(gain_T, reading.reduction)

        rows = [[gain(q, "a", r) - gain(q, "b", r) for r in readings] for q in questions]
        return np.array(rows, dtype=np.float64).reshape(len(questions), len(readings))


def score_requests(questions: Sequence[Question], rules: Sequence[Rule]) -> list[ScoreRequest]:
    """Both answers of every question, each under every rule; questions first, then answers, then rules."""
    return [
        ScoreRequest(_under(rule, question), getattr(question, side))
        for question, side, rule in product(questions, ("a", "b"), rules)
    ]


def _reduce(gain_T: NDArray[np.float64], reduction: Reduction) -> float:
    if reduction == "mean":
        return float(gain_T.mean())
    return float((gain_T[:START_TOKENS] if reduction == "first" else gain_T).sum())


def _under(rule: Rule, question: Question) -> Conversation:
    """The conversation, its first turn of the user headed by the principle or its contrary."""
    if rule == "nothing":
        return question.conversation
    turns = list(question.conversation)
    place = next(i for i, turn in enumerate(turns) if turn.role == "user")
    headed = fill(f"{rule}_rule", rule=_statement(question.principle), prompt=turns[place].content)
    turns[place] = Message("user", headed)
    return tuple(turns)


def _statement(principle: Principle) -> str:
    """A principle as an instruction to who answers: its revision request says what a good answer does."""
    return principle.revision


def _longest(question: Question) -> Conversation:
    return _under("break", question)
