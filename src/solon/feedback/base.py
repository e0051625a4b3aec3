"""The interface of a judge.

A judge answers with a probability or says why it cannot ("unscored"); it never makes a number up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from solon.constitution import Principle


@dataclass(frozen=True)
class Question:
    """Which of the answers a and b to `prompt` does `principle` prefer?"""

    principle: Principle
    prompt: str
    a: str
    b: str


@dataclass(frozen=True)
class Judgement:
    """The probability that a is preferred; None where the judge could not tell, and then why."""

    p_a: float | None
    unscored: str | None = None


class Judge(Protocol):
    """Compares answers. `name` stands in the rows as their origin."""

    @property
    def name(self) -> str: ...

    def compare(self, questions: Sequence[Question]) -> list[Judgement]: ...


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))


def unanswerable(question: Question) -> str | None:
    """Why no judge can answer: an empty text on one side. None if both sides can be read."""
    if not question.a.strip() or not question.b.strip():
        return "an answer is empty"
    return None


def mean_win(judge: Judge, principle: Principle, prompt: str, answers: Sequence[str]) -> list[float | None]:
    """Each answer's mean probability of beating the others; None where the judge scored none of its pairs."""
    pairs = [(i, j) for i in range(len(answers)) for j in range(i + 1, len(answers))]
    questions = [Question(principle, prompt, answers[i], answers[j]) for i, j in pairs]
    wins: list[list[float]] = [[] for _ in answers]
    for (i, j), judgement in zip(pairs, judge.compare(questions), strict=True):
        if judgement.p_a is not None:
            wins[i].append(judgement.p_a)
            wins[j].append(1.0 - judgement.p_a)
    return [sum(won) / len(won) if won else None for won in wins]
