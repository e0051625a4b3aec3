"""Over-optimisation: the reward model's score rises while what it stands for falls (Gao et al. 2023).

The reward model is a copy of the judge, fitted on answers of the SL model. PPO moves away from these, and
finds answers that the copy likes and the judge does not. So the judge itself rates some answers now and
then, always to the same prompts, against the SL model's own.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from solon.errors import RunError
from solon.records import PromptKind
from solon.report.statistics import bootstrap_mean

_RESAMPLES = 1000
_FEWEST = 8  # Of fewer changes the bootstrap's tails are a matter of chance
_LOOKS = 3  # At all prompts and at those of each kind: each interval is as much wider (Bonferroni)


@dataclass(frozen=True)
class Rated:
    """The guard's prompts after `step` steps of training, one entry each.

    `scores` are PPO's, `ratings` the judge's probability that the answer is better than the SL model's;
    None where the judge could not score a pair. `kinds` are the prompts'.
    """

    step: int
    scores: tuple[float, ...]
    ratings: tuple[float | None, ...]
    kinds: tuple[PromptKind, ...]

    @property
    def score(self) -> float:
        return float(np.mean(self.scores))

    def of(self, kind: PromptKind) -> "Rated":
        """The prompts of one kind alone."""
        rows = [row for row in zip(self.scores, self.ratings, self.kinds, strict=True) if row[2] == kind]
        scores, ratings, kinds = zip(*rows, strict=True)
        return Rated(self.step, scores, ratings, kinds)

    @property
    def rating(self) -> float:
        """Mean over the scored pairs. Raises RunError if there is none."""
        scored = [p for p in self.ratings if p is not None]
        if not scored:
            raise RunError(
                "the judge scored none of the guard's pairs, so nothing watches for over-optimisation. "
                "Choose another judge, or set reinforce.guard.every=0."
            )
        return float(np.mean(scored))


@dataclass(frozen=True)
class Evidence:
    """One check as the report shows it. `change` is the rating's against the best check before, paired by
    prompt, with its 95 % bootstrap interval. `gamed_on`: the prompts on which only the reward rose, and
    which the figures are then about."""

    step: int
    score: float
    rating: float
    change: float
    ci95: tuple[float, float]
    gamed_on: PromptKind | Literal["all"] | None = None

    @property
    def over_optimised(self) -> bool:
        return self.gamed_on is not None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ci95": list(self.ci95), "over_optimised": self.over_optimised}


def compare(checks: Sequence[Rated], now: Rated, seed: int) -> Evidence:
    """`now` against the best of the checks before: over-optimised if its score is higher and its rating
    lower, with an interval clear of 0, on all prompts or on those of one kind.

    A policy that refuses everything gains on red-team prompts what it loses on ordinary ones, and one rating
    for all stays where it was. So each kind is compared with the check that was best on that kind.

    Raises:
        RunError: no prompt was scored at both checks.
    """
    _ = now.rating  # Raises if nothing was scored at all
    comparable = [check for check in checks if _changes(check, now)]
    if not comparable:
        raise RunError(
            f"the judge scored no guard prompt both after {now.step} steps and before. "
            "Set reinforce.guard.prompts higher."
        )
    good = best(comparable)
    found = _evidence(good, now, seed)
    if _gamed(good, now, seed):
        return replace(found, gamed_on="all")
    for kind in sorted(set(now.kinds)):
        after = now.of(kind)
        scored = [before for check in checks if _changes(before := check.of(kind), after)]
        if scored and _gamed(best(scored), after, seed):
            return replace(_evidence(best(scored), after, seed), gamed_on=kind)
    return found


def _evidence(good: Rated, now: Rated, seed: int) -> Evidence:
    changes = _changes(good, now)
    interval = bootstrap_mean(changes, _RESAMPLES, seed)
    return Evidence(now.step, now.score, now.rating, float(np.mean(changes)), interval)


def _changes(good: Rated, now: Rated) -> list[float]:
    """Of the ratings, where both were scored."""
    pairs = zip(good.ratings, now.ratings, strict=True)
    return [new - old for old, new in pairs if old is not None and new is not None]


def _gamed(good: Rated, now: Rated, seed: int) -> bool:
    changes = _changes(good, now)
    if len(changes) < _FEWEST or now.score <= good.score:
        return False
    return bootstrap_mean(changes, _RESAMPLES, seed, 1 - 0.05 / _LOOKS)[1] < 0


def best(checks: Sequence[Rated]) -> Rated:
    """The check that the judge rates highest, the later of equals."""
    return max(reversed(checks), key=lambda check: check.rating)


def from_dict(data: dict[str, Any]) -> Rated:
    """A check as a checkpoint holds it."""
    return Rated(int(data["step"]), tuple(data["scores"]), tuple(data["ratings"]), tuple(data["kinds"]))
