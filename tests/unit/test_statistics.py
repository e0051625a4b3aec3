"""The report's statistics against numbers worked out by hand, and properties that must always hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.report.statistics import (
    ELO_PER_NAT,
    bootstrap_mean,
    bootstrap_ratings,
    bootstrap_ratio,
    bradley_terry,
    ece,
    mean_of_shares,
    moving_mean,
    reliability,
    wilson,
)

probability = st.floats(0, 1)
win_matrices = st.integers(2, 4).flatmap(
    lambda k: st.lists(st.lists(st.floats(0, 1e4), min_size=k, max_size=k), min_size=k, max_size=k)
)


def test_wilson_of_5_in_10_by_hand() -> None:
    # z² = 3.8416; centre (0.5 + 0.19208) / 1.38416 = 0.5; half 1.96 / 1.38416 * sqrt(0.025 + 0.009604)
    low, high = wilson(5, 10)
    assert low == pytest.approx(0.5 - 0.263405, abs=1e-5)
    assert high == pytest.approx(0.5 + 0.263405, abs=1e-5)


def test_wilson_of_none_in_10_is_not_empty() -> None:
    # z² / (n + z²) = 3.8416 / 13.8416
    assert wilson(0, 10) == pytest.approx((0.0, 0.277540), abs=1e-5)


def test_wilson_knows_nothing_without_observations() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (float("nan"), 5)])
def test_wilson_refuses_impossible_counts(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(successes, n)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored_low, mirrored_high = wilson(n - successes, n)
    assert (low, high) == pytest.approx((1 - mirrored_high, 1 - mirrored_low))


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert bootstrap_mean([0.25] * 7, 200, seed=1) == (0.25, 0.25)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    # 400 coin flips, half heads: standard error 0.5 / 20 = 0.025
    low, high = bootstrap_mean([0.0, 1.0] * 200, 4000, seed=3)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.005)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.005)


def test_bootstrap_follows_its_seed() -> None:
    values = [0.0, 0.3, 0.9, 1.0]
    assert bootstrap_mean(values, 100, seed=5) == bootstrap_mean(values, 100, seed=5)
    assert bootstrap_mean(values, 100, seed=5) != bootstrap_mean(values, 100, seed=6)


def test_bootstrap_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="one number or more"):
        bootstrap_mean([], 100, seed=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(probability, min_size=30, max_size=200), st.integers(0, 2**32))
def test_bootstrap_interval_contains_the_mean(values: list[float], seed: int) -> None:
    # Of one outlier in 30 1 - (1 - 1/30)^30 = 64 % of the resamples hold a copy: no tail misses it.
    low, high = bootstrap_mean(values, 500, seed)
    assert low - 1e-9 <= float(np.mean(values)) <= high + 1e-9
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_bradley_terry_of_a_clean_sweep_by_hand() -> None:
    # 10 to 0, and half a prior win each: odds 10.5 / 0.5 = 21, split about 0
    ratings = bradley_terry([[0, 10], [0, 0]])
    assert ratings == pytest.approx([math.log(21) / 2, -math.log(21) / 2])


def test_bradley_terry_of_three_players_by_hand() -> None:
    # Odds of 2, 2 and 4 to 1 fit ratings ln 2, 0, -ln 2 exactly; a tiny prior leaves them alone.
    wins = [[0, 200, 400], [100, 0, 200], [100, 100, 0]]
    assert bradley_terry(wins, prior=1e-6) == pytest.approx([math.log(2), 0, -math.log(2)], abs=1e-6)


def test_elo_points_are_odds_of_ten_in_400() -> None:
    assert ELO_PER_NAT * math.log(10) == pytest.approx(400)


@pytest.mark.parametrize("wins", [[1.0, 2.0], [[0, 1, 2], [1, 0, 2]], [[0, -1], [1, 0]]])
def test_bradley_terry_refuses_what_is_no_win_matrix(wins: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="square matrix"):
        bradley_terry(wins)


def test_bradley_terry_refuses_a_prior_of_nothing() -> None:
    with pytest.raises(ValueError, match="positive number"):
        bradley_terry([[0, 1], [0, 0]], prior=0)


@settings(max_examples=60, deadline=None)
@given(win_matrices)
def test_ratings_are_centred_finite_and_antisymmetric(wins: list[list[float]]) -> None:
    ratings = bradley_terry(wins)
    assert np.isfinite(ratings).all()
    assert ratings.sum() == pytest.approx(0, abs=1e-9)
    assert bradley_terry(np.transpose(wins)) == pytest.approx(-ratings, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(win_matrices)
def test_expected_wins_equal_won_ones(wins: list[list[float]]) -> None:
    """The condition of the maximum, computed apart from the fit."""
    k = len(wins)
    ratings, won = bradley_terry(wins), np.asarray(wins) + 0.5
    for i in range(k):
        others = [j for j in range(k) if j != i]
        expected = sum((won[i, j] + won[j, i]) / (1 + math.exp(ratings[j] - ratings[i])) for j in others)
        assert expected == pytest.approx(sum(won[i, j] for j in others), rel=1e-6)


def test_bootstrapped_ratings_surround_the_rating() -> None:
    rng = np.random.default_rng(0)
    wins = np.zeros((60, 2, 2))
    wins[:, 0, 1] = rng.random(60) < 0.7
    wins[:, 1, 0] = 1 - wins[:, 0, 1]
    ratings, intervals = bootstrap_ratings(wins, 400, seed=2)
    assert ratings == pytest.approx(bradley_terry(wins.sum(axis=0)))
    assert (intervals[:, 0] < ratings).all()
    assert (ratings < intervals[:, 1]).all()
    assert intervals[0] == pytest.approx(-intervals[1][::-1])


def test_ratings_over_a_player_have_intervals_of_the_difference() -> None:
    """Of two players the difference is twice the distance to their mean, in every resample."""
    wins = np.array([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    centred, around = bootstrap_ratings(wins, 200, seed=3)
    ratings, intervals = bootstrap_ratings(wins, 200, seed=3, zero=1)
    assert ratings == pytest.approx([2 * centred[0], 0])
    assert intervals == pytest.approx(np.array([2 * around[0], [0, 0]]))


def test_bootstrapped_ratings_refuse_no_prompts() -> None:
    with pytest.raises(ValueError, match="for each prompt"):
        bootstrap_ratings(np.zeros((0, 3, 3)), 100, seed=0)


def test_reliability_by_hand() -> None:
    found = reliability([0.1, 0.2, 0.9, 1.0], [0.0, 1.0, 1.0, 1.0], bins=2)
    assert [b.predicted for b in found] == pytest.approx([0.15, 0.95])
    assert [(b.observed, b.n) for b in found] == [(0.5, 2), (1.0, 2)]
    # (2 * 0.35 + 2 * 0.05) / 4
    assert ece([0.1, 0.2, 0.9, 1.0], [0.0, 1.0, 1.0, 1.0], bins=2) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("predicted", "outcomes"), [([0.5], [0.5, 1]), ([1.5], [1]), ([0.5], [float("nan")])]
)
def test_reliability_refuses_what_is_no_probability(predicted: list[float], outcomes: list[float]) -> None:
    with pytest.raises(ValueError, match=r"one of each|between 0 and 1"):
        reliability(predicted, outcomes)


def test_there_is_no_calibration_error_of_nothing() -> None:
    with pytest.raises(ValueError, match="no prediction"):
        ece([], [])


@given(st.lists(st.tuples(probability, probability), min_size=1, max_size=60), st.integers(1, 20))
def test_ece_lies_between_0_and_1(pairs: list[tuple[float, float]], bins: int) -> None:
    predicted, outcomes = [p for p, _ in pairs], [o for _, o in pairs]
    assert 0 <= ece(predicted, outcomes, bins) <= 1
    assert sum(b.n for b in reliability(predicted, outcomes, bins)) == len(pairs)


@given(st.lists(probability, min_size=1, max_size=60))
def test_ece_of_perfect_calibration_is_0(predicted: list[float]) -> None:
    assert ece(predicted, predicted) == pytest.approx(0, abs=1e-12)


def test_moving_mean_by_hand() -> None:
    assert moving_mean([1, 3, 5, 7], 2) == [1, 2, 4, 6]


def test_shares_that_are_all_alike_leave_something_to_know() -> None:
    assert mean_of_shares([0.0] * 28, 100, 0) == wilson(0, 28)
    assert mean_of_shares([1.0, 1.0], 100, 0) == wilson(2, 2)
    assert mean_of_shares([0.0, 1.0, 0.5], 100, 0) == bootstrap_mean([0.0, 1.0, 0.5], 100, 0)
    assert mean_of_shares([0.5, 0.5], 100, 0) == wilson(1, 2), "equal values do not make it certain"
    with pytest.raises(ValueError, match="one number or more"):
        mean_of_shares([], 100, 0)


def test_units_that_count_once_make_the_ratio_a_mean() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    assert bootstrap_ratio(values, [1] * 5, 500, 3) == pytest.approx(bootstrap_mean(values, 500, 3))


def test_trials_of_one_unit_count_as_one() -> None:
    """Twenty units of three equal trials each are as uncertain as twenty trials, not as sixty."""
    hits = [3.0] * 15 + [0.0] * 5
    low, high = bootstrap_ratio(hits, [3.0] * 20, 4000, 0)
    alone = bootstrap_mean([1.0] * 15 + [0.0] * 5, 4000, 0)
    assert (low, high) == pytest.approx(alone)
    assert bootstrap_ratio([3.0] * 4, [3.0] * 4, 100, 0) == wilson(4, 4)
    assert bootstrap_ratio([1.0, 2.0] * 2, [2.0, 4.0] * 2, 100, 0) == wilson(2, 4)
    with pytest.raises(ValueError, match="of each unit both"):
        bootstrap_ratio([1.0], [0.0], 100, 0)
