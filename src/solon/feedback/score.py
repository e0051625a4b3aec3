"""One answer at a time: the expected value of a rating from 1 to 5 (Liu et al. 2023, G-Eval, sec. 2).

The probabilities of the five digits are normalised over them, so a rating is a number with a fraction. Two
answers are compared by the difference of their ratings; no order can matter, none is swapped.
"""

import math
from collections.abc import Sequence

from solon.engines.base import Conversation, Engine, Message
from solon.feedback.base import Judgement, Question, fit_to_context, judged, sigmoid
from solon.feedback.options import RATINGS, UNTOLD, probabilities
from solon.templates import fill

_ROOM = 8  # Tokens for a digit behind the question


class ScoreJudge:
    """Rates each answer by itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        return f"score:{self._engine.name}"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        """sigmoid(rating of a - rating of b), ratings in points from 1 to 5."""
        return judged(questions, self._compare)

    def _compare(self, questions: Sequence[Question]) -> list[Judgement]:
        fitted = [fit_to_context(q, self._engine, _longer, _ROOM) for q in questions]
        asked = [q for q, problem, _ in fitted if problem is None]
        rows = probabilities(
            self._engine, [(_talk(q, text), "") for q in asked for text in (q.a, q.b)], RATINGS
        )
        ratings = iter((rows @ [float(rating) for rating in RATINGS]).tolist())
        return [
            Judgement(None, problem) if problem else _judgement(next(ratings), next(ratings), truncated)
            for _, problem, truncated in fitted
        ]


def _judgement(a: float, b: float, truncated: bool) -> Judgement:
    if math.isnan(a - b):
        return Judgement(None, UNTOLD, truncated=truncated)
    return Judgement(sigmoid(a - b), truncated=truncated)


def _longer(question: Question) -> Conversation:
    return _talk(question, max(question.a, question.b, key=len))


def _talk(question: Question, answer: str) -> Conversation:
    text = fill("score", dialogue=question.dialogue, answer=answer, question=question.principle.question)
    return (Message("user", text),)
