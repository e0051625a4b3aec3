"""The report's statistics: pure functions of numbers, each with the source of its formula.

NumPy only, so that the stages may use them too. Every interval is a 95 % interval unless it says otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ELO_PER_NAT = 400.0 / math.log(10.0)
"""Multiply a `bradley_terry` rating by this for Elo points (Elo 1978: 400 points are odds of 10 to 1)."""

_NEWTON_STEPS = 500
_CONVERGED = 1e-10


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: means of the `n` predictions in it and of their outcomes."""

    predicted: float
    observed: float
    n: int


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4).

    Stays within [0, 1] and is not empty at 0 or n successes. No observation at all leaves (0, 1).

    Raises:
        ValueError: `successes` is not between 0 and `n`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: give a count between 0 and n.")
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At the ends centre and half are equal in exact arithmetic; rounding must not cross 0, 1 or the share.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def bootstrap_mean(values: ArrayLike, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a mean (Efron & Tibshirani 1993, ch. 13).

    Args:
        values: [n], one number for each independent unit; here a unit is a prompt.

    Raises:
        ValueError: no values.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise ValueError(f"values of shape {values_N.shape}: give one number or more in a row.")
    means_R = _resampled_counts(values_N.size, resamples, seed) @ values_N / values_N.size
    low, high = np.quantile(means_R, _tails(level))
    return float(low), float(high)


def mean_of_shares(values: ArrayLike, resamples: int, seed: int) -> tuple[float, float]:
    """Interval of a mean of shares, one for each prompt: `bootstrap_mean`; where all are equal, Wilson's.

    Equal values resampled are a point, which says that nothing is left to know.

    Raises:
        ValueError: no values.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.size and (values_N == values_N[0]).all():
        return wilson(float(values_N.sum()), values_N.size)
    return bootstrap_mean(values_N, resamples, seed)


def bootstrap_ratio(
    hits: ArrayLike, counts: ArrayLike, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of sum(hits) / sum(counts) over units drawn anew (Efron & Tibshirani 1993, ch. 13).

    Where all units have the same share, Wilson's interval for as many trials as there are units: a unit's own
    trials tell the same.

    Args:
        hits, counts: [n], of each independent unit; here a unit is a prompt with several pairs of answers.

    Raises:
        ValueError: no unit, or one without a count.
    """
    hits_N, counts_N = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if hits_N.shape != counts_N.shape or hits_N.size == 0 or (counts_N <= 0).any():
        raise ValueError(
            f"hits of shape {hits_N.shape} of counts of shape {counts_N.shape}: of each unit both."
        )
    if (hits_N * counts_N[0] == hits_N[0] * counts_N).all():
        return wilson(float(hits_N[0] / counts_N[0]) * hits_N.size, hits_N.size)
    drawn_RN = _resampled_counts(hits_N.size, resamples, seed)
    low, high = np.quantile((drawn_RN @ hits_N) / (drawn_RN @ counts_N), _tails(level))
    return float(low), float(high)


def bradley_terry(wins: ArrayLike, prior: float = 1.0) -> Floats:
    """Ratings of k players, in nats: P(i beats j) = 1 / (1 + exp(r_j - r_i)) (Bradley & Terry 1952).

    The ratings' mean is 0. The likelihood (Hunter 2004, eq. 1) is maximised by Newton's method. Each
    pair has `prior` comparisons more, half won by either, so that the rating of a player who won or lost
    everything is finite.

    Args:
        wins: [k, k], how often row i beat column j; a tie is half a win for both. The diagonal is ignored.

    Returns:
        [k] ratings; times `ELO_PER_NAT` in Elo points.

    Raises:
        ValueError: no square matrix, a negative win, or no positive prior.
        ArithmeticError: Newton's method did not converge.
    """
    wins_KK = np.asarray(wins, dtype=np.float64)
    if wins_KK.ndim != 2:
        raise ValueError(f"wins of shape {wins_KK.shape}: give a square matrix.")
    return np.asarray(_fit(wins_KK[None], prior)[0], dtype=np.float64)


def bootstrap_ratings(
    wins: ArrayLike,
    resamples: int,
    seed: int,
    prior: float = 1.0,
    level: float = 0.95,
    zero: int | None = None,
) -> tuple[Floats, Floats]:
    """Ratings over all prompts, and their percentile intervals from resampled prompts.

    Args:
        wins: [n, k, k], the win matrix of each prompt, as for `bradley_terry`.
        zero: a player. Ratings and intervals are then of the differences to that player's rating, whose
            own is zero, and not of the differences to the players' mean.

    Returns:
        [k] ratings and [k, 2] intervals, in nats.

    Raises:
        ValueError: no prompt, or no square matrices.
    """
    wins_NKK = np.asarray(wins, dtype=np.float64)
    if wins_NKK.ndim != 3 or wins_NKK.shape[0] == 0:
        raise ValueError(f"wins of shape {wins_NKK.shape}: give one square matrix for each prompt.")
    n, k, _ = wins_NKK.shape
    counts_RN = _resampled_counts(n, resamples, seed)
    resampled_RKK = (counts_RN @ wins_NKK.reshape(n, -1)).reshape(resamples, *wins_NKK.shape[1:])
    ratings_RK = _fit(np.concatenate([wins_NKK.sum(axis=0)[None], resampled_RKK]), prior)
    if zero is not None:
        ratings_RK = ratings_RK - ratings_RK[:, zero, None]
    low_K, high_K = np.quantile(ratings_RK[1:], _tails(level), axis=0)
    return ratings_RK[0], np.stack([low_K, high_K], axis=1).reshape(k, 2)


def reliability(predicted: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> list[Bin]:
    """A reliability diagram: equally wide bins over [0, 1], those without a prediction left out.

    DeGroot & Fienberg 1983; Guo et al. 2017, sec. 2. Outcomes may be soft, for instance a judge's
    probabilities: then it compares with their mean.

    Raises:
        ValueError: different lengths, or a number outside [0, 1].
    """
    predicted_N = np.asarray(predicted, dtype=np.float64)
    outcomes_N = np.asarray(outcomes, dtype=np.float64)
    if predicted_N.ndim != 1 or predicted_N.shape != outcomes_N.shape:
        raise ValueError(f"{predicted_N.shape} predictions, {outcomes_N.shape} outcomes: give one of each.")
    for name, values_N in (("predictions", predicted_N), ("outcomes", outcomes_N)):
        if not ((values_N >= 0) & (values_N <= 1)).all():
            raise ValueError(f"{name} must lie between 0 and 1.")
    place_N = np.minimum((predicted_N * bins).astype(int), bins - 1)
    return [
        Bin(float(predicted_N[here].mean()), float(outcomes_N[here].mean()), int(here.sum()))
        for here in (place_N == place for place in range(bins))
        if here.any()
    ]


def ece(predicted: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean distance of the bins from the diagonal, by their counts.

    Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017, eq. 3.

    Raises:
        ValueError: nothing predicted, or as `reliability`.
    """
    found = reliability(predicted, outcomes, bins)
    if not found:
        raise ValueError("no prediction: there is no calibration error of nothing.")
    return sum(b.n * abs(b.predicted - b.observed) for b in found) / sum(b.n for b in found)


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window` - 1 values before it."""
    return [float(np.mean(values[max(0, i + 1 - window) : i + 1])) for i in range(len(values))]


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def _resampled_counts(n: int, resamples: int, seed: int) -> Floats:
    """[resamples, n]: how often each of n units is drawn when n are drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.asarray(drawn, dtype=np.float64)


def _fit(wins_RKK: Floats, prior: float) -> Floats:
    """[R, k] ratings of R win matrices at once."""
    _, k, columns = wins_RKK.shape
    if k != columns or not (wins_RKK >= 0).all():
        raise ValueError(f"wins of shape {wins_RKK.shape[1:]}: give a square matrix without negative wins.")
    if not prior > 0:
        raise ValueError(f"prior {prior}: give a positive number, or a player who won all has no rating.")
    wins_RKK = np.where(np.eye(k, dtype=bool), 0.0, wins_RKK + prior / 2)
    ratings_RK = np.zeros(wins_RKK.shape[:2])
    for _ in range(_NEWTON_STEPS):
        step_RK = _newton_step(wins_RKK, ratings_RK)
        # The likelihood is concave; a bounded step keeps the first ones, far from the top, from overshooting.
        largest_R1 = np.abs(step_RK).max(axis=1, keepdims=True)
        ratings_RK = ratings_RK + step_RK / np.maximum(1.0, largest_R1)
        if largest_R1.max() < _CONVERGED:
            centred_RK: Floats = ratings_RK - ratings_RK.mean(axis=1, keepdims=True)
            return centred_RK
    raise ArithmeticError(f"the ratings did not converge in {_NEWTON_STEPS} Newton steps.")


def _newton_step(wins_RKK: Floats, ratings_RK: Floats) -> Floats:
    k = wins_RKK.shape[1]
    games_RKK = wins_RKK + wins_RKK.transpose(0, 2, 1)
    expected_RKK = 1 / (1 + np.exp(ratings_RK[:, None, :] - ratings_RK[:, :, None]))
    gradient_RK = (wins_RKK - games_RKK * expected_RKK).sum(axis=2)
    weight_RKK = games_RKK * expected_RKK * (1 - expected_RKK)
    # Only differences matter: adding a constant to all directions makes the singular Hessian invertible.
    hessian_RKK = np.eye(k) * weight_RKK.sum(axis=2)[:, :, None] - weight_RKK + 1 / k
    return np.asarray(np.linalg.solve(hessian_RKK, gradient_RK[:, :, None])[:, :, 0], dtype=np.float64)
