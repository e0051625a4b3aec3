"""Making a judge's probabilities mean what they say, fitted on answers with a known better one.

A soft label of 0.8 should be right in 80 % of the cases: the reward model learns the number. Both maps keep
the order of a and b apart from the sides: swapping the answers turns p into 1 - p.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from solon.feedback.base import Judge, Judgement, Question, logit, sigmoid

Method = Literal["temperature", "isotonic", "none"]
_TEMPERATURES = np.geomspace(0.05, 100.0, 400)


@dataclass(frozen=True)
class Calibration:
    """A map of probabilities. `temperature` divides the logit; the knots are a step-wise linear map.

    `n` is on how many comparisons it was fitted.
    """

    method: Method
    n: int = 0
    temperature: float = 1.0
    knots_from: tuple[float, ...] = ()
    knots_to: tuple[float, ...] = ()

    def apply(self, p: float) -> float:
        """The calibrated probability."""
        if self.method == "temperature":
            return sigmoid(logit(p) / self.temperature)
        if self.method == "isotonic":
            return float(np.interp(p, self.knots_from, self.knots_to))
        return p

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "knots_from": list(self.knots_from), "knots_to": list(self.knots_to)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Calibration":
        knots = {name: tuple(data[name]) for name in ("knots_from", "knots_to")}
        return cls(**{**data, **knots})


def fit_calibration(method: Method, p_better: Sequence[float]) -> Calibration:
    """Fit on the probabilities that a judge gave to answers known to be better.

    Targets are smoothed as in Platt (1999), sec. 2.2: n agreeing comparisons of n do not make certainty.
    Without a comparison nothing is changed.
    """
    if method == "none" or not p_better:
        return Calibration("none", len(p_better))
    if method == "temperature":
        return Calibration("temperature", len(p_better), temperature=_temperature(p_better))
    knots_from, knots_to = _isotonic(p_better)
    return Calibration("isotonic", len(p_better), knots_from=knots_from, knots_to=knots_to)


def _temperature(p_better: Sequence[float]) -> float:
    """The temperature of least log-loss (Guo et al. 2017, sec. 4.2), on a fine grid: it is one number."""
    z_n = np.array([logit(p) for p in p_better])
    target = (len(z_n) + 1) / (len(z_n) + 2)
    scaled_Tn = z_n / _TEMPERATURES[:, None]
    loss_T = target * np.logaddexp(0, -scaled_Tn).sum(1) + (1 - target) * np.logaddexp(0, scaled_Tn).sum(1)
    return float(_TEMPERATURES[int(np.argmin(loss_T))])


def _isotonic(p_better: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of a rising map (Zadrozny and Elkan 2002) of p and its mirror image 1 - p."""
    # Rounded: 1 - 0.9 and 0.1 are one probability, though not one float.
    p_2n = np.round(np.concatenate([np.array(p_better), 1 - np.array(p_better)]), 12)
    right_2n = np.concatenate([np.ones(len(p_better)), np.zeros(len(p_better))])
    order = np.argsort(p_2n, kind="stable")
    x_k, where = np.unique(p_2n[order], return_inverse=True)
    count_k = np.bincount(where).astype(np.float64)
    mean_k = np.bincount(where, weights=right_2n[order]) / count_k
    y_k = pool_adjacent(mean_k, count_k)
    # A block of n that is right n times says (n + 1) / (n + 2), not 1.
    low, high = 1 / (len(p_better) + 2), (len(p_better) + 1) / (len(p_better) + 2)
    held_k = np.clip(y_k, low, high)
    mirrored_k = (held_k + 1 - held_k[::-1]) / 2
    return tuple(x_k.tolist()), tuple(mirrored_k.tolist())


def pool_adjacent(y_k: NDArray[np.float64], weight_k: NDArray[np.float64]) -> NDArray[np.float64]:
    """The closest rising sequence in weighted squares: pool adjacent violators (Ayer et al. 1955)."""
    blocks: list[tuple[float, float, int]] = []
    for y, weight in zip(y_k.tolist(), weight_k.tolist(), strict=True):
        blocks.append((y, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (y2, w2, n2), (y1, w1, n1) = blocks.pop(), blocks.pop()
            blocks.append(((y1 * w1 + y2 * w2) / (w1 + w2), w1 + w2, n1 + n2))
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])


class Calibrated:
    """A judge whose probabilities pass through a calibration; orders and disagreement stay as they were."""

    def __init__(self, judge: Judge, calibration: Calibration) -> None:
        self.judge = judge
        self.calibration = calibration

    @property
    def name(self) -> str:
        return self.judge.name

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        return [self.calibrate(judgement) for judgement in self.judge.compare(questions)]

    def calibrate(self, judgement: Judgement) -> Judgement:
        if judgement.p_a is None:
            return judgement
        return replace(judgement, p_a=self.calibration.apply(judgement.p_a), p_raw=judgement.p_a)
