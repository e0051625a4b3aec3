"""How good is the judge? Measured on comparisons with a known better answer that it was not fitted on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from solon.constitution import Comparison, Constitution, Purpose
from solon.digest import seed_from
from solon.engines.local import LocalEngine
from solon.feedback.base import Judge, Question
from solon.feedback.choice import ChoiceJudge
from solon.feedback.linear_probe import LinearProbe, comparison_features, fit
from solon.recipe import JudgeSettings
from solon.report.statistics import wilson


@dataclass(frozen=True)
class Check:
    """Accuracy on `n` comparisons, with its Wilson interval; a tie counts as wrong."""

    kind: str
    accuracy: float
    n: int
    ci95: tuple[float, float]

    @property
    def beats_chance(self) -> bool:
        return self.ci95[0] > 0.5

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ci95": list(self.ci95)}


def open_judge(
    settings: JudgeSettings, constitution: Constitution, engine: LocalEngine, purpose: Purpose, seed: int
) -> Judge:
    """The judge that the recipe names, taught by the comparisons of one purpose only."""
    comparisons = constitution.comparisons(purpose)
    if settings.kind == "linear_probe":
        return LinearProbe(engine, comparisons, settings.layer, settings.l2)
    return ChoiceJudge(engine, comparisons, constitution.principles, settings.demonstrations, seed)


def check_judge(
    settings: JudgeSettings, constitution: Constitution, engine: LocalEngine, purpose: Purpose, seed: int
) -> Check:
    """Measure the judge on the constitution's comparisons of one purpose, held out from its fitting.

    The probe is cross-validated; the choice judge never sees the asked comparison as a demonstration.
    """
    comparisons = constitution.comparisons(purpose)
    if settings.kind == "linear_probe":
        correct = cross_validate(settings, comparisons, engine, seed)
    else:
        judge = open_judge(settings, constitution, engine, purpose, seed)
        correct = _ask_all(judge, constitution, comparisons, seed)
    hits = sum(correct)
    return Check(settings.kind, hits / len(correct), len(correct), wilson(hits, len(correct)))


def cross_validate(
    settings: JudgeSettings, comparisons: Sequence[Comparison], engine: LocalEngine, seed: int
) -> list[bool]:
    """Whether each comparison is read rightly by a probe fitted on the other folds.

    Folds go by prompt, so that two comparisons of one prompt are never on both sides.
    """
    better, worse = comparison_features(engine, comparisons, settings.layer)
    folds = np.array([seed_from(seed, c.prompt) % settings.folds for c in comparisons])
    correct = np.zeros(len(comparisons), dtype=bool)
    for fold in range(settings.folds):
        test = folds == fold
        if test.any() and not test.all():
            readout = fit(better[~test], worse[~test], settings.l2)
            correct[test] = readout.score(better[test]) > readout.score(worse[test])
    return [bool(c) for c in correct]


def _ask_all(
    judge: Judge, constitution: Constitution, comparisons: Sequence[Comparison], seed: int
) -> list[bool]:
    questions = []
    for c in comparisons:
        a, b = (c.better, c.worse) if seed_from(seed, c.prompt) % 2 else (c.worse, c.better)
        questions.append(Question(constitution.principle(c.principle), c.prompt, a, b))
    correct = []
    for comparison, question, judgement in zip(comparisons, questions, judge.compare(questions), strict=True):
        better_is_a = question.a == comparison.better
        correct.append(
            judgement.p_a is not None and (judgement.p_a > 0.5) == better_is_a and judgement.p_a != 0.5
        )
    return correct
