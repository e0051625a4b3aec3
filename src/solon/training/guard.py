"""Over-optimisation: the reward model's score rises while what it stands for falls (Gao et al. 2023).

The reward model is a copy of the judge, fitted on answers of the SL model. PPO moves away from these, and
finds answers that the copy likes and the judge does not. So the judge itself rates some answers now and
then, always to the same prompts, against the SL model's own.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from solon.errors import RunError
from solon.report.statistics import bootstrap_mean

_RESAMPLES = 1000


@dataclass(frozen=True)
class Rated:
    """The guard's prompts after `step` steps of training, one entry each.

    `scores` are PPO's, `ratings` the judge's probability that the answer is better than the SL model's;
    None where the judge could not score a pair.
    """

    step: int
    scores: tuple[float, ...]
    ratings: tuple[float | None, ...]

    @property
    def score(self) -> float:
        return float(np.mean(self.scores))

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
    prompt, with its 95 % bootstrap interval."""

    step: int
    score: float
    rating: float
    change: float
    ci95: tuple[float, float]
    over_optimised: bool

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ci95": list(self.ci95)}


def compare(good: Rated, now: Rated, seed: int) -> Evidence:
    """`now` against the best check so far: over-optimised if its score is higher and its rating lower,
    with an interval clear of 0."""
    pairs = zip(good.ratings, now.ratings, strict=True)
    changes = np.array([new - old for old, new in pairs if old is not None and new is not None])
    if len(changes) == 0:
        raise RunError("the judge scored no guard prompt at both checks. Set reinforce.guard.prompts higher.")
    low, high = bootstrap_mean(changes, _RESAMPLES, seed)
    worse = now.score > good.score and high < 0
    return Evidence(now.step, now.score, now.rating, float(changes.mean()), (low, high), worse)


def best(checks: Sequence[Rated]) -> Rated:
    """The check that the judge rates highest, the later of equals."""
    return max(reversed(checks), key=lambda check: check.rating)


def from_dict(data: dict[str, Any]) -> Rated:
    """A check as a checkpoint holds it."""
    return Rated(int(data["step"]), tuple(data["scores"]), tuple(data["ratings"]))
