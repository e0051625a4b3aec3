"""Judges: the probe's fit, both orders of the choice, and what cannot be scored."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from solon.constitution import Comparison, Principle
from solon.engines.base import GenerateRequest, Score, ScoreRequest
from solon.errors import UsageError
from solon.feedback.base import Question, mean_win, sigmoid
from solon.feedback.choice import ChoiceJudge
from solon.feedback.linear_probe import LinearProbe, fit

PRINCIPLE = Principle(id="p", about="a", critique="c", revision="r", question="Which is kinder?")


def _comparison(number: int) -> Comparison:
    return Comparison(principle="p", prompt=f"q{number}", better=f"kind {number}", worse=f"rude {number}")


class _Reader:
    """Features of a text: how many of its letters are a k, and a constant."""

    def hidden_means(self, requests: Sequence[ScoreRequest], layer: float) -> NDArray[np.float64]:
        return np.array([[r.continuation.count("k"), 1.0] for r in requests], dtype=np.float64)


def test_fit_finds_the_optimum() -> None:
    """One feature, two pairs with differences +2 and +2, l2 = 1.

    Scale: better [1, 3], worse [-1, 1], so std over [1, 3, -1, 1] is sqrt(2) and each difference is
    d = 2/sqrt(2) = sqrt(2). The optimum solves w = 2 d sigmoid(-w d).
    """
    readout = fit(np.array([[1.0], [3.0]]), np.array([[-1.0], [1.0]]), l2=1.0)
    w, d = float(readout.weights[0]), math.sqrt(2)
    assert w == pytest.approx(2 * d * sigmoid(-w * d), abs=1e-4)
    assert w > 0


@given(shift=st.floats(-100, 100))
def test_readout_differences_ignore_a_common_shift(shift: float) -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.normal(1, 1, (12, 3)), rng.normal(0, 1, (12, 3))
    plain = fit(better, worse, 1.0)
    moved = fit(better + shift, worse + shift, 1.0)
    before = plain.score(better) - plain.score(worse)
    after = moved.score(better + shift) - moved.score(worse + shift)
    np.testing.assert_allclose(before, after, atol=1e-3)


def test_probe_reads_the_taught_direction_and_is_antisymmetric() -> None:
    probe = LinearProbe(_Reader(), [_comparison(i) for i in range(8)], layer=0.5, l2=1.0)
    forward, backward = probe.compare(
        [Question(PRINCIPLE, "q", "kk", "none"), Question(PRINCIPLE, "q", "none", "kk")]
    )
    assert forward.p_a is not None
    assert backward.p_a is not None
    assert forward.p_a > 0.7
    assert forward.p_a + backward.p_a == pytest.approx(1.0)


def test_probe_needs_comparisons() -> None:
    with pytest.raises(UsageError, match="at least 8 comparisons"):
        LinearProbe(_Reader(), [_comparison(i) for i in range(7)], layer=0.5, l2=1.0)


class _Chooser:
    """Scores "(A)" by `bias`, plus `love` if the kind answer stands at A."""

    name = "chooser"

    def __init__(self, bias: float, love: float) -> None:
        self.bias, self.love = bias, love
        self.requests: list[ScoreRequest] = []

    def generate(self, requests: Sequence[GenerateRequest]) -> list[object]:
        raise AssertionError("a choice judge generates nothing")

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        self.requests.extend(requests)
        return [Score((self._logit(r) if r.continuation == "(A)" else 0.0,)) for r in requests]

    def _logit(self, request: ScoreRequest) -> float:
        kind_is_a = "Answer (A): kind" in request.conversation[-1].content
        return self.bias + (self.love if kind_is_a else -self.love)


def _choice(engine: _Chooser, demonstrations: int = 0) -> ChoiceJudge:
    comparisons = [_comparison(i) for i in range(6)]
    return ChoiceJudge(engine, comparisons, [PRINCIPLE], demonstrations, seed=1)  # type: ignore[arg-type]


def test_choice_averages_both_orders() -> None:
    """bias 2, love 1: straight sigmoid(3), swapped 1 - sigmoid(1); the mean is (0.9526 + 0.2689) / 2."""
    [judgement] = _choice(_Chooser(2.0, 1.0)).compare([Question(PRINCIPLE, "q", "kind", "rude")])
    assert judgement.p_a == pytest.approx((0.952574 + 0.268941) / 2, abs=1e-5)


def test_choice_cancels_a_pure_position_bias() -> None:
    [judgement] = _choice(_Chooser(5.0, 0.0)).compare([Question(PRINCIPLE, "q", "kind", "rude")])
    assert judgement.p_a == pytest.approx(0.5)


def test_choice_never_shows_the_asked_comparison() -> None:
    engine = _Chooser(0.0, 1.0)
    asked = _comparison(2)
    _choice(engine, demonstrations=5).compare([Question(PRINCIPLE, asked.prompt, asked.better, asked.worse)])
    for request in engine.requests:
        shown = [m.content for m in request.conversation[:-1] if m.role == "user"]
        assert len(shown) == 5
        assert not any("q2" in text for text in shown)


def test_empty_answer_is_unscored_never_a_half() -> None:
    judges = (
        _choice(_Chooser(0.0, 1.0)),
        LinearProbe(_Reader(), [_comparison(i) for i in range(8)], layer=0.5, l2=1.0),
    )
    for judge in judges:
        empty, fine = judge.compare(
            [Question(PRINCIPLE, "q", " ", "x"), Question(PRINCIPLE, "q", "kind", "x")]
        )
        assert (empty.p_a, empty.unscored) == (None, "an answer is empty")
        assert fine.p_a is not None


def test_mean_win_ranks() -> None:
    probe = LinearProbe(_Reader(), [_comparison(i) for i in range(8)], layer=0.5, l2=1.0)
    wins = mean_win(probe, PRINCIPLE, "q", ["none", "kkk", "k", ""])
    assert wins[3] is None
    scored = [w for w in wins[:3] if w is not None]
    assert sorted(range(3), key=lambda i: -scored[i]) == [1, 2, 0]


@given(st.floats(-1000, 1000))
def test_sigmoid_is_stable(x: float) -> None:
    assert 0.0 <= sigmoid(x) <= 1.0
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1.0)
