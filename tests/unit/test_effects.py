"""What each principle does, against numbers worked out by hand, and properties that must always hold."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from solon.feedback.effects import (
    Floats,
    PrincipleEffect,
    agreement_matrix,
    as_metrics,
    flipped_share,
    principle_effects,
)

NAN = math.nan
NAMES = ("one", "two", "three")
# Sides by pair: a a b | a b b | a a . (unscored) | a a (tie)
P_NK = np.array([[0.9, 0.8, 0.1], [0.9, 0.2, 0.3], [0.6, 0.8, NAN], [0.7, 0.6, 0.5]])

probabilities = st.integers(0, 3).flatmap(
    lambda k: arrays(np.float64, st.tuples(st.integers(0, 6), st.just(k)), elements=st.floats(0, 1, width=32))
)


def effects(p: Any, names: tuple[str, ...] = NAMES) -> list[PrincipleEffect]:
    return principle_effects(p, names, {"one": 5, "three": 2})


def test_agreement_by_hand() -> None:
    # one and two agree on 3 of 4; one and three on 0 + 0 + 1/2 of 3; two and three on 0 + 1 + 1/2 of 3.
    expected = [[1, 3 / 4, 1 / 6], [3 / 4, 1, 1 / 2], [1 / 6, 1 / 2, 1]]
    assert agreement_matrix(P_NK) == pytest.approx(np.array(expected))


def test_there_is_no_agreement_without_a_common_pair() -> None:
    found = agreement_matrix([[0.9, NAN, NAN], [NAN, 0.9, NAN]])
    assert np.array_equal(found, [[1, NAN, NAN], [NAN, 1, NAN], [NAN, NAN, NAN]], equal_nan=True)


def test_two_ties_agree_by_half_and_a_principle_always_with_itself() -> None:
    assert agreement_matrix([[0.5, 0.5]]).tolist() == [[1, 0.5], [0.5, 1]]


def test_effects_by_hand() -> None:
    # Means of all: 0.6, 1.4/3, 0.7, 0.6. Others of one: 0.45, 0.25, 0.8, 0.55: it differs on pairs 1 and 2,
    # and without it pair 1 goes from a to b, while pair 2 is b's already.
    one, two, three = effects(P_NK)
    assert (one.principle, one.drawn, one.decisive, one.left_out_flips) == ("one", 5, 2 / 4, 1 / 4)
    assert one.left_out_shift == pytest.approx((0.15 + (1.4 / 3 - 0.25) + 0.1 + 0.05) / 4)
    assert one.agreement == pytest.approx((3 / 4 + 1 / 6) / 2)
    # Others of two: 0.5 (a tie), 0.6, 0.6, 0.6: it differs on pair 2 only, which turns to a without it.
    assert (two.principle, two.drawn, two.decisive, two.left_out_flips) == ("two", 0, 1 / 4, 1 / 4)
    assert two.left_out_shift == pytest.approx((0.1 + (0.6 - 1.4 / 3) + 0.1 + 0) / 4)
    # Others of three: 0.85, 0.55, -, 0.65 (its own is a tie there); pair 3, which it did not score, is out.
    assert (three.principle, three.drawn, three.decisive, three.left_out_flips) == ("three", 2, 2 / 3, 1 / 3)
    assert three.left_out_shift == pytest.approx((0.25 + (0.55 - 1.4 / 3) + 0.05) / 3)
    assert three.agreement == pytest.approx((1 / 6 + 1 / 2) / 2)


def test_a_mean_that_only_rounding_keeps_from_a_tie_has_no_side() -> None:
    others = [0.3, 0.4, 0.6, 0.7]
    assert 0.4999999 < float(np.sum(others)) / 4 < 0.5
    assert effects([[0.8, *others]], tuple("abcde"))[0].decisive == 0.0


@pytest.mark.parametrize(
    ("p", "names"),
    [
        ([[0.9], [0.2]], ("one",)),
        ([[NAN, NAN]], ("one", "two")),
        ([[0.9, NAN], [NAN, 0.2]], ("one", "two")),
        (np.zeros((0, 2)), ("one", "two")),
    ],
)
def test_what_cannot_be_computed_is_none(p: Any, names: tuple[str, ...]) -> None:
    assert effects(p, names) == [
        PrincipleEffect(name, {"one": 5}.get(name, 0), None, None, None, None) for name in names
    ]


def test_a_principle_that_scored_nothing_leaves_the_others_alone() -> None:
    one, two, three = effects([[0.9, 0.2, NAN], [0.7, 0.6, NAN]])
    assert (one.decisive, one.agreement) == (two.decisive, two.agreement) == (0.5, 0.5)
    assert (three.decisive, three.agreement) == (None, None)


def test_flipped_share_by_hand() -> None:
    # a to b, b to b, tie to b, a to tie, unscored before, unscored after, b to a
    before = [0.9, 0.1, 0.5, 0.9, NAN, 0.2, 0.4]
    after = [0.4, 0.2, 0.1, 0.5, 0.3, NAN, 0.51]
    assert flipped_share(before, after) == (2, 5)
    assert flipped_share([], []) == (0, 0)


@pytest.mark.parametrize(("before", "after"), [([0.1], [0.1, 0.2]), ([[0.1]], [[0.2]])])
def test_flipped_share_refuses_what_is_no_two_numbers_a_pair(before: Any, after: Any) -> None:
    with pytest.raises(ValueError, match="two numbers for each pair"):
        flipped_share(before, after)


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ([0.1, 0.2], "a row a pair"),
        ([[0.1, 1.2, 0.3]], "between 0 and 1"),
        ([[0.1, 0.2]], "2 columns for 3"),
    ],
)
def test_what_is_no_matrix_of_probabilities_is_refused(p: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        effects(p)


def test_metrics_are_json_and_hold_no_nan() -> None:
    found = as_metrics([[0.9, 0.2, NAN], [0.7, 0.6, NAN]], NAMES, {"two": 1})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["pairs"] == 2
    assert found["agreement"] == [[1, 0.5, None], [0.5, 1, None], [None, None, None]]
    assert [p["drawn"] for p in found["principles"]] == [0, 1, 0]
    assert found["principles"][2] == {
        "principle": "three",
        "drawn": 0,
        "decisive": None,
        "left_out_flips": None,
        "left_out_shift": None,
        "agreement": None,
    }


@given(probabilities)
def test_agreement_is_symmetric_and_a_share(p_NK: Floats) -> None:
    found = agreement_matrix(p_NK)
    assert np.array_equal(found, found.T, equal_nan=True)
    assert (np.isnan(found) | ((found >= 0) & (found <= 1))).all()
    # Which answer is called a does not matter.
    assert np.array_equal(found, agreement_matrix(1 - p_NK), equal_nan=True)


@given(probabilities)
def test_a_judge_deaf_to_principles_shows_no_effect(p_NK: Floats) -> None:
    same_NK = np.repeat(p_NK[:, :1], 4, axis=1) if p_NK.shape[1] else np.zeros((0, 4))
    for effect in effects(same_NK, tuple("abcd")):
        assert effect.decisive in (0.0, None)
        assert effect.left_out_flips in (0.0, None)
        assert effect.left_out_shift is None or effect.left_out_shift == pytest.approx(0, abs=1e-12)
