"""Means over judges and over principles, with how far their members disagree.

The paper found that preferences averaged over 16 principles are more robust than those of one (Bai et al.
2022, sec. 4.1). A judgement is made of the members that could tell; where none could, it is unscored.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solon.constitution import Principle, asked_on
from solon.digest import seed_from
from solon.feedback.base import Judge, Judgement, Question
from solon.feedback.calibration import Calibrated
from solon.records import PromptKind


class Ensemble:
    """Asks several judges the same question and averages their probabilities."""

    def __init__(self, members: Sequence[Judge]) -> None:
        self.members = tuple(members)

    @property
    def name(self) -> str:
        return "ensemble(" + "+".join(member.name for member in self.members) + ")"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        columns = [member.compare(questions) for member in self.members]
        return [average(row) for row in zip(*columns, strict=True)]


class OverPrinciples:
    """Asks a judge about the question's own principle and others drawn for it, `count` in all."""

    def __init__(self, judge: Judge, principles: Sequence[Principle], count: int, seed: int) -> None:
        self.judge = judge
        self._principles = tuple(principles)
        self._count = count
        self._seed = seed

    @property
    def name(self) -> str:
        return self.judge.name

    def asked(self, question: Question) -> tuple[Principle, ...]:
        """The question's principle first, then others, the same for the same two answers in any order."""
        mine = question.principle.id
        others = [p for p in self._principles if p.id != mine and asked_on(p, question.kind)]
        rng = random.Random(seed_from(self._seed, question.prompt, sorted([question.a, question.b])))
        return (question.principle, *rng.sample(others, min(self._count - 1, len(others))))

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        groups = [[replace(q, principle=p) for p in self.asked(q)] for q in questions]
        judgements = iter(self.judge.compare([q for group in groups for q in group]))
        return [average([next(judgements) for _ in group]) for group in groups]


def principles_asked(judge: Calibrated, question: Question) -> tuple[Principle, ...]:
    """The principles that a judge asks about a question."""
    return judge.judge.asked(question) if isinstance(judge.judge, OverPrinciples) else (question.principle,)


def by_one_principle(judge: Judge) -> Judge:
    """The judge that asks about a question's own principle alone."""
    return judge.judge if isinstance(judge, OverPrinciples) else judge


def every_principle(
    judge: Calibrated,
    principles: Sequence[Principle],
    pairs: Sequence[tuple[str, str, str, PromptKind | None]],
) -> NDArray[np.float64]:
    """P(a) by each principle alone, [pairs, principles]; pairs are (prompt, a, b, kind of prompt).

    NaN where unscored, and where a principle is not asked on prompts of that kind.
    """
    p_NK = np.full((len(pairs), len(principles)), math.nan)
    asked = [
        (n, k, Question(principle, prompt, a, b, kind=kind))
        for n, (prompt, a, b, kind) in enumerate(pairs)
        for k, principle in enumerate(principles)
        if asked_on(principle, kind)
    ]
    judge = Calibrated(by_one_principle(judge.judge), judge.calibration)
    for (n, k, _), found in zip(asked, judge.compare([q for *_, q in asked]), strict=True):
        p_NK[n, k] = math.nan if found.p_a is None else found.p_a
    return p_NK


@dataclass(frozen=True)
class _Moments:
    mean: float
    deviation: float


def average(judgements: Sequence[Judgement]) -> Judgement:
    """The mean of the members that scored; their population standard deviation is the disagreement.

    One member alone disagrees with nobody: what it said of its own members stays.
    """
    scored = [j for j in judgements if j.p_a is not None]
    truncated = any(j.truncated for j in judgements)
    if not scored:
        return Judgement(None, judgements[0].unscored, truncated=truncated)
    found = _moments([j.p_a for j in scored if j.p_a is not None])
    orders = [j.orders for j in scored if j.orders is not None]
    both = (_moments([o[0] for o in orders]).mean, _moments([o[1] for o in orders]).mean) if orders else None
    disagreement = found.deviation if len(scored) > 1 else scored[0].disagreement
    return Judgement(found.mean, None, both, disagreement, truncated)


def _moments(values: Sequence[float]) -> _Moments:
    mean = sum(values) / len(values)
    return _Moments(mean, math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)))
