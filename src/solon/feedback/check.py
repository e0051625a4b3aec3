"""How good is the judge? Measured on comparisons with a known better answer that it was not fitted on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from solon.constitution import Comparison, Constitution, Purpose
from solon.digest import seed_from
from solon.engines.local import LocalEngine
from solon.feedback.base import Judge, Question
from solon.feedback.choice import ChoiceJudge
from solon.feedback.linear_probe import LinearProbe
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


def checked_judge(
    settings: JudgeSettings, constitution: Constitution, engine: LocalEngine, purpose: Purpose, seed: int
) -> tuple[Judge, Check]:
    """The judge, and how it does on the constitution's comparisons held out from its fitting.

    The probe is cross-validated; the choice judge never sees the asked comparison as a demonstration.
    """
    judge = open_judge(settings, constitution, engine, purpose, seed)
    if isinstance(judge, LinearProbe):
        correct = judge.cross_validate(settings.folds, seed)
    else:
        correct = _ask_all(judge, constitution, constitution.comparisons(purpose), seed)
    hits = sum(correct)
    return judge, Check(settings.kind, hits / len(correct), len(correct), wilson(hits, len(correct)))


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
