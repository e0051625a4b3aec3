"""Judges: the probe's fit, both orders of the choice, and what cannot be scored."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.constitution import Comparison, Principle
from solon.engines.base import Message, ScoreRequest
from solon.engines.local import LocalEngine
from solon.engines.scripted import ScriptedEngine
from solon.errors import RunError, UsageError
from solon.feedback.base import Judgement, Question, fit_to_context, sigmoid
from solon.feedback.choice import ChoiceJudge
from solon.feedback.demonstrated import demonstrated
from solon.feedback.linear_probe import Grid, LinearProbe, TaughtProbe, off_topic_pairs
from solon.feedback.probe_file import load_probe, save_probe
from solon.feedback.readout import fit, fit_path

PRINCIPLE = Principle(id="p", about="a", critique="c", revision="r", question="Which is kinder?")


def _comparison(number: int) -> Comparison:
    return Comparison(principle="p", prompt=f"q{number}", better=f"kind {number}", worse=f"rude {number}")


def _taught(count: int) -> list[tuple[Comparison, Principle]]:
    return [(_comparison(i), PRINCIPLE) for i in range(count)]


def _letters(request: ScoreRequest, layer: float) -> list[float]:
    """Features of a text: how many of its letters are a k, and a constant."""
    return [float(request.continuation.count("k")), 1.0]


ONE = Grid((0.5,), ("mean",), (1.0,), (0.0,))


def _probe(grid: Grid = ONE, count: int = 8) -> TaughtProbe:
    return TaughtProbe(ScriptedEngine(hidden=_letters), _taught(count), grid, 4, 0)


def test_fit_finds_the_optimum() -> None:
    """One feature, two pairs with differences +2 and +2, l2 = 1.

    Scale: better [1, 3], worse [-1, 1], so std over [1, 3, -1, 1] is sqrt(2) and each difference is
    d = 2/sqrt(2) = sqrt(2). The optimum solves w = 2 d sigmoid(-w d).
    """
    readout = fit(np.array([[1.0], [3.0]]), np.array([[-1.0], [1.0]]), l2=1.0)
    w, d = float(readout.overall_D[0]), math.sqrt(2)
    assert w == pytest.approx(2 * d * sigmoid(-w * d), abs=1e-4)
    assert w > 0


def test_own_directions_solve_the_joint_problem() -> None:
    """Against a naive fit: features [x, x of group g], weights [w, v_g / sqrt(own)], by plain descent."""
    rng = np.random.default_rng(1)
    better, worse = rng.normal(0.4, 1, (12, 3)), rng.normal(0, 1, (12, 3))
    groups, own, l2 = ["p", "q"] * 6, 0.5, 2.0
    shares = math.sqrt(own) * np.array([[group == "p", group == "q"] for group in groups], dtype=float)
    readout = fit(better, worse, l2, shares)
    difference = (better - worse) / readout.scale_D
    naive = np.zeros((12, 9))
    naive[:, :3] = difference
    for i, group in enumerate(groups):
        start = 3 if group == "p" else 6
        naive[i, start : start + 3] = difference[i] * math.sqrt(own)
    weights = np.zeros(9)
    for _ in range(20_000):
        right = 1 / (1 + np.exp(-(naive @ weights)))
        weights -= 0.02 * (l2 * weights - naive.T @ (1 - right))
    np.testing.assert_allclose(readout.overall_D, weights[:3], atol=1e-5)
    np.testing.assert_allclose(readout.strays_GD, weights[3:].reshape(2, 3), atol=1e-5)
    expected = naive @ weights
    found = readout.score(better, shares) - readout.score(worse, shares)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@given(shift=st.floats(-100, 100))
def test_readout_differences_ignore_a_common_shift(shift: float) -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.normal(1, 1, (12, 3)), rng.normal(0, 1, (12, 3))
    plain, moved = fit(better, worse, 1.0), fit(better + shift, worse + shift, 1.0)
    before = plain.score(better) - plain.score(worse)
    after = moved.score(better + shift) - moved.score(worse + shift)
    np.testing.assert_allclose(before, after, atol=1e-3)


def test_probe_reads_the_taught_direction_and_is_antisymmetric() -> None:
    forward, backward = _probe().compare(
        [Question(PRINCIPLE, "q", "kk", "none"), Question(PRINCIPLE, "q", "none", "kk")]
    )
    assert forward.p_a is not None
    assert backward.p_a is not None
    assert forward.p_a > 0.7
    assert forward.p_a + backward.p_a == pytest.approx(1.0)


def test_probe_needs_comparisons() -> None:
    with pytest.raises(UsageError, match="at least 8 comparisons"):
        _probe(count=7)


def test_probe_chooses_the_layer_that_tells() -> None:
    """At 0.2 the features are noise, at 0.8 they tell: validation must find the latter, and say so."""

    def hidden(request: ScoreRequest, layer: float) -> list[float]:
        noise = [math.sin(37.0 * len(request.continuation) + sum(map(ord, request.continuation)))]
        return noise if layer < 0.5 else _letters(request, layer)[:1]

    comparisons = _taught(12)
    probe = TaughtProbe(
        ScriptedEngine(hidden=hidden), comparisons, Grid((0.2, 0.8), ("mean",), (1.0,), (0.0,)), 4, 0
    )
    assert probe.fitted.setting.layer == 0.8
    assert min(probe.held_out()) > 0.5


def test_what_is_held_out_was_never_seen() -> None:
    """Labels without any pattern: fitted, a rich probe agrees with all of them; held out, it must not."""
    rng = np.random.default_rng(3)
    known: dict[str, list[float]] = {}

    def hidden(request: ScoreRequest, layer: float) -> list[float]:
        return known.setdefault(request.continuation, rng.normal(0, 1, 60).tolist())

    comparisons = _taught(40)
    probe = TaughtProbe(
        ScriptedEngine(hidden=hidden), comparisons, Grid((0.5,), ("mean",), (0.1,), (0.0,)), 5, 0
    )
    asked = [Question(PRINCIPLE, c.prompt, c.better, c.worse) for c, _ in comparisons]
    fitted = [j.p_a for j in probe.compare(asked) if j.p_a is not None]
    assert min(fitted) > 0.5
    assert sum(p > 0.5 for p in probe.held_out()) < 32


class _Chooser(ScriptedEngine):
    """Scores "(A)" by `bias`, plus `love` if the kind answer stands at A."""

    def __init__(self, bias: float, love: float) -> None:
        super().__init__(logprobs=self._logit, name="chooser")
        self.bias, self.love = bias, love
        self.requests: list[ScoreRequest] = []

    def _logit(self, request: ScoreRequest) -> list[float]:
        self.requests.append(request)
        if request.continuation != "(A":
            return [0.0]
        kind_is_a = "Answer (A): kind" in request.conversation[-1].content
        return [self.bias + (self.love if kind_is_a else -self.love)]


def _choice(engine: _Chooser, demonstrations: int = 0) -> ChoiceJudge:
    shown = demonstrated([_comparison(i) for i in range(6)], [PRINCIPLE], demonstrations, seed=1)
    return ChoiceJudge(engine, shown)


def test_choice_averages_both_orders() -> None:
    """bias 2, love 1: straight sigmoid(3), swapped 1 - sigmoid(1); the mean is (0.9526 + 0.2689) / 2."""
    [judgement] = _choice(_Chooser(2.0, 1.0)).compare([Question(PRINCIPLE, "q", "kind", "rude")])
    assert judgement.p_a == pytest.approx((0.952574 + 0.268941) / 2, abs=1e-5)
    assert judgement.orders == pytest.approx((0.952574, 0.268941), abs=1e-5)
    assert judgement.flipped is True


def test_choice_cancels_a_pure_position_bias() -> None:
    [judgement] = _choice(_Chooser(5.0, 0.0)).compare([Question(PRINCIPLE, "q", "kind", "rude")])
    assert judgement.p_a == pytest.approx(0.5)


def test_choice_without_a_bias_never_flips() -> None:
    [judgement] = _choice(_Chooser(0.0, 2.0)).compare([Question(PRINCIPLE, "q", "kind", "rude")])
    assert judgement.flipped is False


def test_choice_never_shows_the_asked_comparison() -> None:
    engine = _Chooser(0.1, 1.0)
    asked = _comparison(2)
    _choice(engine, demonstrations=5).compare([Question(PRINCIPLE, asked.prompt, asked.better, asked.worse)])
    for request in engine.requests:
        shown = [m.content for m in request.conversation[:-1] if m.role == "user"]
        assert len(shown) == 5
        assert not any("q2" in text for text in shown)


def test_choice_shows_the_better_answer_in_both_places() -> None:
    engine = _Chooser(0.1, 1.0)
    _choice(engine, demonstrations=4).compare([Question(PRINCIPLE, "q", "kind", "rude")])
    marks = [m.content for m in engine.requests[0].conversation if m.role == "assistant"]
    assert sorted(marks) == ["(A)", "(A)", "(B)", "(B)"]
    for turn, mark in zip(engine.requests[0].conversation[::2], marks, strict=False):
        assert f"Answer {mark}: kind" in turn.content


class _Blind:
    """A tokenizer that writes every short text as its unknown token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **settings: Any) -> Any:
        return {"input_ids": [1]}


def test_options_that_a_tokenizer_writes_alike_are_an_error(tiny_engine: LocalEngine) -> None:
    engine = LocalEngine(tiny_engine.model, _Blind(tiny_engine.tokenizer), "blind")
    with pytest.raises(RunError, match=r"blind cannot tell the options \(A\) \(B\) apart"):
        ChoiceJudge(engine, demonstrated([], [], 0, 0)).compare([Question(PRINCIPLE, "q", "kind", "rude")])


def test_options_that_are_equally_likely_are_a_tie() -> None:
    judge = ChoiceJudge(ScriptedEngine(logprobs=lambda r: [-1.0]), demonstrated([], [], 0, 0))
    [judgement] = judge.compare([Question(PRINCIPLE, "q", "kind", "rude")])
    assert (judgement.p_a, judgement.flipped) == (0.5, False)


def test_a_judgement_that_is_no_probability_is_an_error() -> None:
    for p in (math.nan, -0.1, 1.1):
        with pytest.raises(RunError, match="no numbers"):
            Judgement(p)


def test_a_logprob_that_is_no_number_is_an_error() -> None:
    engine = ScriptedEngine(logprobs=lambda r: [math.nan])
    with pytest.raises(RunError, match="no number"):
        ChoiceJudge(engine, demonstrated([], [], 0, 0)).compare([Question(PRINCIPLE, "q", "kind", "rude")])


def test_empty_answer_is_unscored_never_a_half() -> None:
    for judge in (_choice(_Chooser(0.0, 1.0)), _probe()):
        empty, fine = judge.compare(
            [Question(PRINCIPLE, "q", " ", "x"), Question(PRINCIPLE, "q", "kind", "x")]
        )
        assert (empty.p_a, empty.unscored) == (None, "an answer is empty")
        assert fine.p_a is not None


class _Letters(ScriptedEngine):
    """Every letter is a token."""

    def length(self, conversation: tuple[Message, ...]) -> int:
        return sum(len(m.content) for m in conversation)


def _fitted(question: Question, context: int) -> tuple[Question, str | None, bool]:
    return fit_to_context(question, ScriptedEngine(context=context), lambda q: q.conversation, room=3)


def test_a_conversation_is_cut_from_the_left() -> None:
    """Words count as tokens: 4 of history, 4 of prompt, room for 3."""
    history = (Message("user", "one two"), Message("assistant", "three four"))
    question = Question(PRINCIPLE, "five six seven eight", "a", "b", history)
    assert _fitted(question, 11) == (question, None, False)
    cut, problem, truncated = _fitted(question, 9)
    # The assistant's turn goes with the user's before it: a conversation begins with the user.
    assert (cut.history, cut.prompt, problem, truncated) == ((), "five six seven eight", None, True)
    longer = Question(PRINCIPLE, "five", "a", "b", (*history, Message("user", "six"), history[1]))
    assert _fitted(longer, 8)[0].history == longer.history[2:]
    cut, problem, truncated = _fitted(question, 5)
    assert (cut.history, cut.prompt, problem, truncated) == ((), "seven eight", None, True)
    no_spaces = fit_to_context(
        Question(PRINCIPLE, "你好世界" * 4, "a", "b"), _Letters(context=11), lambda q: q.conversation, room=3
    )
    assert (no_spaces[0].prompt, no_spaces[2]) == ("你好世界" * 2, True)
    assert _fitted(question, 3)[1] == "the answers alone do not fit into the judge's context"


def test_what_does_not_fit_is_unscored_and_what_was_cut_is_marked() -> None:
    engine = _Chooser(0.0, 1.0)
    engine.context = 60
    judge = ChoiceJudge(engine, demonstrated([], [], 0, 0))
    long, huge = (
        Question(PRINCIPLE, "word " * 40, "kind", "rude"),
        Question(PRINCIPLE, "q", "kind " * 80, "x"),
    )
    cut, none = judge.compare([long, huge])
    assert cut.truncated
    assert cut.p_a is not None
    assert none.p_a is None
    assert none.unscored is not None
    assert "do not fit" in none.unscored


@given(st.floats(-1000, 1000))
def test_sigmoid_is_stable(x: float) -> None:
    assert 0.0 <= sigmoid(x) <= 1.0
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 2)), max_size=20),
    st.floats(0, 1),
    st.integers(),
)
def test_off_topic_pairs_stay_in_their_fold(
    comparisons: list[tuple[str, int]], share: float, seed: int
) -> None:
    prompts, folds = [c[0] for c in comparisons], [c[1] for c in comparisons]
    pairs = off_topic_pairs(prompts, folds, share, seed)
    assert pairs == off_topic_pairs(prompts, folds, share, seed)
    assert len({i for i, _ in pairs}) == len(pairs) <= round(share * len(prompts))
    assert all(folds[i] == folds[j] and prompts[i] != prompts[j] for i, j in pairs)


def test_penalties_of_one_path_are_those_fitted_alone() -> None:
    rng = np.random.default_rng(4)
    better, worse, shares = rng.normal(0.3, 1, (9, 4)), rng.normal(0, 1, (9, 4)), rng.random((9, 2))
    for l2, readout in zip((0.5, 5.0), fit_path(better, worse, (0.5, 5.0), shares), strict=True):
        alone = fit(better, worse, l2, shares)
        np.testing.assert_allclose(readout.overall_D, alone.overall_D, atol=1e-9)
        np.testing.assert_allclose(readout.strays_GD, alone.strays_GD, atol=1e-9)


def _refusing(request: ScoreRequest, layer: float) -> list[float]:
    return [float(request.continuation.startswith("no")), 1.0]


def test_a_refusal_may_be_better_on_one_kind_of_prompt_and_worse_on_the_other(tmp_path: Path) -> None:
    """One direction cannot say so; the cross-validation finds that the kinds want their own."""
    harm = PRINCIPLE.model_copy(update={"id": "harm", "asked_on": "red_team"})
    help_ = PRINCIPLE.model_copy(update={"id": "help", "asked_on": "helpful"})
    taught = [
        (Comparison(principle=p.id, prompt=f"{p.id} {i}", better=texts[0], worse=texts[1]), p)
        for i in range(8)
        for p, texts in ((harm, (f"no {i}", f"yes {i}")), (help_, (f"yes {i}", f"no {i}")))
    ]
    grid = Grid((0.5,), ("mean",), (1.0,), (0.0,), (0.0, 4.0))
    probe = TaughtProbe(ScriptedEngine(hidden=_refusing), taught, grid, 4, 0)
    assert probe.fitted.setting.kinds == 4.0
    anywhere = PRINCIPLE.model_copy(update={"id": "new"})
    asked = [Question(anywhere, "q", "no", "yes", kind=kind) for kind in ("red_team", "helpful", None)]
    harmful, ordinary, unknown = (j.p_a for j in probe.compare(asked))
    assert harmful is not None
    assert ordinary is not None
    assert harmful > 0.7
    assert ordinary < 0.3
    assert unknown == pytest.approx(0.5, abs=0.05)
    assert min(probe.held_out()) > 0.5
    save_probe(probe.fitted, tmp_path / "probe")
    again = LinearProbe(ScriptedEngine(hidden=_refusing), load_probe(tmp_path / "probe"))
    assert again.compare(asked) == probe.compare(asked), "a probe on the disk judges as it did"


def _topic_and_kindness(request: ScoreRequest, layer: float) -> list[float]:
    """Whether the answer has the number of its question, and whether it is kind."""
    number = request.conversation[-1].content.removeprefix("q")
    return [float(request.continuation.split()[-1] == number), float(request.continuation.startswith("kind"))]


@pytest.mark.parametrize(("share", "preferred"), [(0.0, 0.5), (1.0, 0.9)])
def test_a_probe_can_be_taught_that_an_answer_belongs_to_its_question(share: float, preferred: float) -> None:
    """Without off-topic pairs the first feature never differs, and the probe is blind to it."""
    engine = ScriptedEngine(hidden=_topic_and_kindness)
    probe = TaughtProbe(engine, _taught(24), ONE, 2, 0, share)
    [judgement] = probe.compare([Question(PRINCIPLE, "q7", "kind 7", "kind 8")])
    assert judgement.p_a is not None
    assert judgement.p_a == pytest.approx(0.5) if share == 0 else judgement.p_a > preferred
    assert len(probe.held_out()) == 24
