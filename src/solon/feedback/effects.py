"""What each principle does to the labels: pure functions of the probabilities that a judge gives by each one.

A pair that a principle could not score (NaN) counts nowhere for that principle. A probability of one half
prefers no answer: it has no side, so nothing changes side from it or to it. What cannot be computed is None
or NaN, never a made-up number.

Shapes: N pairs of answers, K principles. The probabilities are that answer a is preferred.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# The mean of 0.3, 0.4, 0.6 and 0.7 is a tie; what rounding leaves of it must not make a side.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PrincipleEffect:
    """What one principle does, on the pairs that it and at least one other principle scored.

    `drawn`: how many labels were given by it. `decisive`: share of pairs on which it prefers another answer
    than the mean of all the others, so that drawing it turns the label. `left_out_flips`: share whose mean
    over all principles changes side when it is left out; `left_out_shift`: how far that mean then moves, on
    average. `agreement`: its agreement with another principle, averaged over the others.
    """

    principle: str
    drawn: int
    decisive: float | None
    left_out_flips: float | None
    left_out_shift: float | None
    agreement: float | None


def agreement_matrix(p: ArrayLike) -> Floats:
    """Share of the pairs that two principles both scored on which they prefer the same answer.

    A pair on which either prefers none counts one half.

    Args:
        p: [N, K] probabilities, NaN where unscored.

    Returns:
        [K, K], symmetric; NaN where two principles have no pair in common. The diagonal is 1, ties or not,
        and NaN for a principle that scored nothing.

    Raises:
        ValueError: no matrix, or a number that is no probability.
    """
    p_NK = _probabilities(p)
    side_NK, scored_NK = _side(p_NK), (~np.isnan(p_NK)).astype(np.float64)
    common_KK = scored_NK.T @ scored_NK
    # The product of two sides is 1 where they are the same, -1 where they differ and 0 at a tie.
    same_KK = (common_KK + side_NK.T @ side_NK) / 2
    np.fill_diagonal(same_KK, np.diag(common_KK))
    return np.divide(same_KK, common_KK, out=np.full_like(same_KK, np.nan), where=common_KK > 0)


def principle_effects(p: ArrayLike, names: Sequence[str], drawn: Mapping[str, int]) -> list[PrincipleEffect]:
    """What each principle does, in the order of `names`.

    Args:
        p: [N, K] probabilities, NaN where unscored.
        names: of the K principles.
        drawn: how many labels each principle gave; one that is absent gave none.

    Raises:
        ValueError: no matrix with a column for each name, or a number that is no probability.
    """
    p_NK = _probabilities(p)
    if p_NK.shape[1] != len(names):
        raise ValueError(f"{p_NK.shape[1]} columns for {len(names)} principles: give one for each.")
    return [_effect(p_NK, k, name, drawn.get(name, 0)) for k, name in enumerate(names)]


def _effect(p_NK: Floats, k: int, name: str, drawn: int) -> PrincipleEffect:
    own_N, others_N = p_NK[:, k], _mean(np.delete(p_NK, k, axis=1))
    both_N = ~np.isnan(own_N) & ~np.isnan(others_N)
    if not both_N.any():
        return PrincipleEffect(name, drawn, None, None, None, None)
    own_N, others_N, all_N = own_N[both_N], others_N[both_N], _mean(p_NK[both_N])
    return PrincipleEffect(
        principle=name,
        drawn=drawn,
        decisive=_share(*flipped_share(others_N, own_N)),
        left_out_flips=_share(*flipped_share(all_N, others_N)),
        left_out_shift=float(np.abs(all_N - others_N).mean()),
        agreement=float(np.nanmean(np.delete(agreement_matrix(p_NK)[k], k))),
    )


def flipped_share(before: ArrayLike, after: ArrayLike) -> tuple[int, int]:
    """(how many pairs change side, how many are scored both times); a tie on either hand is no change.

    Args:
        before, after: [N] probabilities of the same pairs, NaN where unscored.

    Raises:
        ValueError: not one number for each pair in both.
    """
    before_N, after_N = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before_N.ndim != 1 or before_N.shape != after_N.shape:
        raise ValueError(f"shapes {before_N.shape} and {after_N.shape}: give two numbers for each pair.")
    scored_N = ~np.isnan(before_N) & ~np.isnan(after_N)
    changed_N = _side(before_N) * _side(after_N) < 0
    return int(changed_N.sum()), int(scored_N.sum())


def as_metrics(p: ArrayLike, names: Sequence[str], drawn: Mapping[str, int]) -> dict[str, Any]:
    """All of it, ready for JSON: `pairs` N, `principles` a mapping each, `agreement` [K][K] (None for NaN).

    Takes and raises what `principle_effects` does.
    """
    effects = principle_effects(p, names, drawn)
    rows = agreement_matrix(p).tolist()
    return {
        "pairs": len(_probabilities(p)),
        "principles": [asdict(effect) for effect in effects],
        "agreement": [[None if np.isnan(share) else share for share in row] for row in rows],
    }


def _probabilities(p: ArrayLike) -> Floats:
    p_NK = np.asarray(p, dtype=np.float64)
    if p_NK.ndim != 2:
        raise ValueError(f"probabilities of shape {p_NK.shape}: give a row a pair, a column a principle.")
    if not (np.isnan(p_NK) | ((p_NK >= 0) & (p_NK <= 1))).all():
        raise ValueError("probabilities must lie between 0 and 1, or be NaN where unscored.")
    return p_NK


def _side(p: Floats) -> Floats:
    """1 where a is preferred, -1 where b is, 0 at a tie or where unscored; of any shape."""
    lead = np.nan_to_num(p - 0.5)
    return np.where(np.abs(lead) > _ROUNDING, np.sign(lead), 0.0)


def _mean(p_NK: Floats) -> Floats:
    """[N] means over the principles that scored, NaN where none did."""
    scored_N = (~np.isnan(p_NK)).sum(axis=1)
    means_N = np.full(len(p_NK), np.nan)
    np.divide(np.nansum(p_NK, axis=1), scored_N, out=means_N, where=scored_N > 0)
    return means_N


def _share(changed: int, scored: int) -> float:
    return changed / scored
