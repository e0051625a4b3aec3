"""The judges beyond choice and probe: thinking aloud, likelihood, ratings, ensembles, calibration, checks."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.constitution import Principle
from solon.engines.base import GenerateRequest, ScoreRequest
from solon.engines.scripted import ScriptedEngine
from solon.errors import LogprobsUnavailableError
from solon.feedback.base import Judgement, Question, decisions, preferences, settled, sigmoid
from solon.feedback.calibration import Calibrated, Calibration, fit_calibration, pool_adjacent
from solon.feedback.chain_of_thought import ChainOfThoughtJudge, Thinking, parse_verdict
from solon.feedback.check import summarise
from solon.feedback.ensemble import Ensemble, OverPrinciples, average, every_principle
from solon.feedback.likelihood import LikelihoodJudge, Reading
from solon.feedback.measure import Item, Result, ask
from solon.feedback.score import ScoreJudge
from solon.settings import Sampling


def _principle(name: str = "p") -> Principle:
    return Principle(
        id=name, about="a", critique=f"c {name}", revision=f"be {name}", question=f"Which is {name}?"
    )


ASKED = Question(_principle(), "q", "kind", "rude")
THINKING = Thinking(Sampling(max_tokens=20), samples=2, clamp=(0.4, 0.6), seed=0)


def _thinker(reply: str, love: float) -> ScriptedEngine:
    """Chooses (A) by the log-odds `love` if the kind answer stands there, else by minus that."""

    def logprobs(request: ScoreRequest) -> list[float]:
        assert request.continuation.startswith("Kindness counts.\n\nThe better answer is (")
        kind_is_a = "Answer (A): kind" in request.conversation[-1].content
        chosen = request.continuation.endswith("(A")
        return [(love if kind_is_a else -love) if chosen else 0.0]

    return ScriptedEngine(lambda request: reply, logprobs)


def test_thinking_aloud_is_clamped() -> None:
    """Log-odds of 5 are 0.993, held at 0.6; of 0.2 they are 0.54983 and stay."""
    reply = "Kindness counts. The better answer is (B)."
    for love, expected in ((5.0, 0.6), (0.2, 0.549834), (-5.0, 0.4)):
        [judgement] = ChainOfThoughtJudge(_thinker(reply, love), THINKING).compare([ASKED])
        assert judgement.p_a == pytest.approx(expected, abs=1e-6)
        assert judgement.orders == pytest.approx((expected, expected), abs=1e-6)


class _Mute(ScriptedEngine):
    """An engine without log-probabilities."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[object]:  # type: ignore[override]
        raise LogprobsUnavailableError("this server returns no log-probabilities")


def test_without_logprobs_a_verdict_is_parsed() -> None:
    def reply(request: GenerateRequest) -> str:
        first = "Answer (A): kind" in request.conversation[-1].content
        return f"So. The better answer is ({'A' if first else 'B'})."

    [judgement] = ChainOfThoughtJudge(_Mute(reply), THINKING).compare([ASKED])
    assert judgement.p_a == pytest.approx(0.6)
    assert judgement.flipped is False


def test_what_cannot_be_parsed_is_unscored() -> None:
    [judgement] = ChainOfThoughtJudge(_Mute(lambda r: "Both have merits."), THINKING).compare([ASKED])
    assert judgement.p_a is None
    assert judgement.unscored == "no verdict could be read in any reply"


def test_one_order_alone_is_no_judgement() -> None:
    def reply(request: GenerateRequest) -> str:
        first = "Answer (A): kind" in request.conversation[-1].content
        return "The better answer is (A)." if first else "Hm."

    [judgement] = ChainOfThoughtJudge(_Mute(reply), THINKING).compare([ASKED])
    assert judgement.p_a is None


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("The better answer is (A).", 1.0),
        ("the BETTER answer is: B", 0.0),
        ("The better answer is (A)? No: the better answer is (B).", 0.0),
        ("The better answer is Apple pie.", None),
        ("The better answer is a short one.", None),
        ("The better answer is a polite refusal. The better answer is (B), then.", 0.0),
        ("(A)", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, verdict: float | None) -> None:
    assert parse_verdict(reply) == verdict


def _continuer(request: ScoreRequest) -> list[float]:
    """Two tokens; the rule makes "kind" likelier by 1 and 3 nats, its contrary "rude" by 1 and 1."""
    text = request.conversation[0].content
    follows, breaks = "kind, honest" in text, "cruel, dishonest" in text
    if request.continuation == "kind":
        return [-5.0 + follows, -6.0 + 3 * follows]
    return [-2.0 + breaks, -2.0 + breaks]


def _likelihood(*readings: Reading, known: Sequence[Question] = ()) -> LikelihoodJudge:
    return LikelihoodJudge(
        ScriptedEngine(logprobs=_continuer), readings, known, [i % 2 for i in range(len(known))]
    )


@pytest.mark.parametrize(
    ("reading", "gain"),
    [
        (Reading("sum", "nothing"), 4.0),  # kind +1 +3, rude 0
        (Reading("mean", "nothing"), 2.0),
        (Reading("first", "nothing"), 4.0),
        (Reading("sum", "contrary"), 6.0),  # kind +4 - 0, rude 0 - 2
        (Reading("mean", "contrary"), 3.0),
    ],
)
def test_likelihood_gains(reading: Reading, gain: float) -> None:
    [judgement] = _likelihood(reading).compare([ASKED])
    assert judgement.p_a == pytest.approx(sigmoid(gain))


def test_likelihood_chooses_the_reading_that_is_right() -> None:
    """Against nothing "rude" is never raised: the questions whose better answer is "rude" tell them apart."""
    rude = [Question(_principle(), f"q{i}", "rude", "meh") for i in range(4)]

    def logprobs(request: ScoreRequest) -> list[float]:
        follows = "kind, honest" in request.conversation[0].content
        breaks = "cruel, dishonest" in request.conversation[0].content
        return [-2.0 - follows - 3 * breaks] if request.continuation == "rude" else [-2.0]

    readings = (Reading("sum", "nothing"), Reading("sum", "contrary"))
    judge = LikelihoodJudge(ScriptedEngine(logprobs=logprobs), readings, rude, [0, 1, 0, 1])
    assert judge.reading.against == "contrary"
    assert judge.held_out() == pytest.approx([sigmoid(2.0)] * 4)


def test_ratings_are_expected_values() -> None:
    """kind: probabilities 0, 0, 0, 1/2, 1/2 of 1 to 5, so 4.5; rude: all on 2."""

    def logprobs(request: ScoreRequest) -> list[float]:
        kind = "Answer: kind" in request.conversation[-1].content
        likely = request.continuation in (("4", "5") if kind else ("2",))
        return [0.0 if likely else -50.0]

    [judgement] = ScoreJudge(ScriptedEngine(logprobs=logprobs)).compare([ASKED])
    assert judgement.p_a == pytest.approx(sigmoid(2.5))


class _Says:
    """A judge that says a fixed probability for each principle, None for others."""

    def __init__(self, by_principle: dict[str, float]) -> None:
        self.by_principle = by_principle

    name = "says"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        found = [self.by_principle.get(q.principle.id) for q in questions]
        return [Judgement(p, None if p is not None else "no idea") for p in found]


def test_an_ensemble_is_the_mean_and_keeps_the_disagreement() -> None:
    """0.2 and 0.8: mean 0.5, deviation 0.3."""
    [judgement] = Ensemble([_Says({"p": 0.2}), _Says({"p": 0.8})]).compare([ASKED])
    assert (judgement.p_a, judgement.disagreement) == pytest.approx((0.5, 0.3))


def test_members_that_cannot_tell_are_left_out() -> None:
    assert Ensemble([_Says({}), _Says({"p": 0.8})]).compare([ASKED])[0].p_a == 0.8
    [none] = Ensemble([_Says({}), _Says({})]).compare([ASKED])
    assert (none.p_a, none.unscored) == (None, "no idea")


def test_principles_are_averaged_and_do_not_depend_on_the_order() -> None:
    principles = [_principle(name) for name in "pqr"]
    judge = OverPrinciples(_Says({"p": 0.1, "q": 0.5, "r": 0.9}), principles, 3, seed=1)
    [judgement] = judge.compare([ASKED])
    assert judgement.p_a == pytest.approx(0.5)
    two = OverPrinciples(_Says({}), principles, 2, seed=1)
    turned = Question(ASKED.principle, ASKED.prompt, ASKED.b, ASKED.a)
    assert [p.id for p in two.asked(ASKED)] == [p.id for p in two.asked(turned)]
    assert two.asked(ASKED)[0] == ASKED.principle


def test_every_principle_is_asked_alone() -> None:
    principles = [_principle(name) for name in "pq"]
    judge = Calibrated(OverPrinciples(_Says({"p": 0.1}), principles, 2, 0), Calibration("none"))
    table = every_principle(judge, principles, [("q", "a", "b", None)])
    np.testing.assert_array_equal(table, [[0.1, math.nan]])


def test_only_principles_that_are_asked_on_a_kind_of_prompt_are_asked_beside_the_drawn_one() -> None:
    everywhere, harm = _principle("q"), _principle("r").model_copy(update={"asked_on": "red_team"})
    principles = [_principle("p"), everywhere, harm]
    judge = OverPrinciples(_Says({"p": 0.1, "q": 0.5, "r": 0.9}), principles, 3, seed=1)
    asked = {k: {p.id for p in judge.asked(replace(ASKED, kind=k))} for k in (None, "red_team", "helpful")}
    assert asked == {None: {"p", "q", "r"}, "red_team": {"p", "q", "r"}, "helpful": {"p", "q"}}
    table = every_principle(
        Calibrated(judge, Calibration("none")),
        principles,
        [("q", "a", "b", "helpful"), ("q", "a", "b", "red_team")],
    )
    np.testing.assert_array_equal(table, [[0.1, 0.5, math.nan], [0.1, 0.5, 0.9]])


def test_orders_are_averaged_too() -> None:
    found = average([Judgement(0.4, orders=(0.2, 0.6)), Judgement(0.6, orders=(0.4, 0.8)), Judgement(0.5)])
    assert found.orders == pytest.approx((0.3, 0.7))


@given(st.floats(0, 1), st.sampled_from(["temperature", "isotonic", "none"]))
def test_calibration_treats_both_sides_alike(p: float, method: str) -> None:
    known = [0.9, 0.8, 0.3, 0.95, 0.6, 0.4, 0.7]
    fitted = fit_calibration(method, known)  # type: ignore[arg-type]
    assert fitted.apply(p) + fitted.apply(1 - p) == pytest.approx(1.0, abs=1e-6)
    assert 0 <= fitted.apply(p) <= 1
    assert Calibration.from_dict(fitted.as_dict()) == fitted


def test_temperature_finds_the_overconfidence() -> None:
    """Logits of 4 that are right in 3 of 4: the best probability is (3n + …)/4, so the logit is log 3."""
    known = [sigmoid(4.0)] * 300 + [sigmoid(-4.0)] * 100
    fitted = fit_calibration("temperature", known)
    assert fitted.apply(sigmoid(4.0)) == pytest.approx(0.75, abs=0.01)


def test_isotonic_says_what_was_seen() -> None:
    """0.9 was right in 8 of 10, 0.6 in 6 of 10."""
    known = [0.9] * 8 + [0.1] * 2 + [0.6] * 6 + [0.4] * 4
    fitted = fit_calibration("isotonic", known)
    assert fitted.apply(0.9) == pytest.approx(0.8)
    assert fitted.apply(0.6) == pytest.approx(0.6)
    assert fitted.apply(0.1) == pytest.approx(0.2)


def test_pool_adjacent_violators_by_hand() -> None:
    """1, 3, 2 with weights 1, 1, 3: the last two become (3 + 6) / 4."""
    np.testing.assert_allclose(pool_adjacent(np.array([1.0, 3, 2]), np.array([1.0, 1, 3])), [1, 2.25, 2.25])


def test_nothing_to_calibrate_by_changes_nothing() -> None:
    assert fit_calibration("temperature", []).apply(0.37) == 0.37


def test_a_calibrated_judge_keeps_the_raw_probability() -> None:
    judge = Calibrated(_Says({"p": 0.9}), Calibration("temperature", 1, temperature=2.0))
    [judgement] = judge.compare([ASKED])
    assert judgement.p_raw == 0.9
    assert judgement.p_a == pytest.approx(0.75)  # log-odds of 0.9 are log 9, halved log 3


def _result(p: float | None, better: int, worse: int, flipped: bool | None = None) -> Result:
    return Result("s", "p", p, None if p is not None else "empty", flipped, False, better, worse)


def test_the_figures_of_a_check() -> None:
    """4 scored, 2 right; the better answer is shorter in 1, longer in 2, as long in 1; two lengths alike."""
    results = [
        _result(0.9, 10, 20, False),
        _result(0.7, 30, 10, True),
        _result(0.5, 10, 10, True),
        _result(0.2, 11, 10, False),
        _result(None, 0, 5),
    ]
    check = summarise("choice", "file", results, 1.0, 7)
    assert check is not None
    assert (check.accuracy, check.n, check.flip_rate) == (0.5, 4, 0.5)
    assert (check.shorter, check.longer) == (0.375, 0.625)
    assert check.length_matched is not None
    assert (check.length_matched.accuracy, check.length_matched.n) == (0.0, 2)
    assert check.unscored == {"empty": 1}
    assert not check.beats_chance()
    lucky = replace(check, accuracy=0.6, n=100)
    assert lucky.beats_chance(), "Wilson: 0.502"
    assert not lucky.beats_chance(tried=2), "the better of two coins: 0.488"
    # Bins of 0.9 and 0.1: off by 0.1; 0.7, 0.3: by 0.3; 0.5 twice: by 0; 0.2, 0.8: by 0.8.
    assert check.ece == pytest.approx((0.1 + 0.3 + 0.0 + 0.8) / 4)
    assert summarise("choice", "file", results[4:], 1.0, 7) is None


def test_asking_does_not_tell_where_the_better_answer_stands() -> None:
    items = [Item(_principle(), f"q{i}", "kind", "rude", str(i)) for i in range(40)]
    results = ask(_Says({"p": 0.9}), items, seed=0)
    right = sum((r.p_better or 0) > 0.5 for r in results)
    assert 8 < right < 32  # always "a" is right in about half of them


@pytest.mark.parametrize(
    ("a", "b", "known"),
    [("x", "y", None), ("x", "x", 0.5), ("", " ", 0.5), ("x", "\n", 1.0), ("", "y", 0.0)],
)
def test_what_needs_no_judge(a: str, b: str, known: float | None) -> None:
    assert settled(a, b) == known


def test_a_judge_is_asked_what_is_not_settled_and_not_called_for_nothing() -> None:
    asked: list[Question] = []

    def compare(questions: Sequence[Question]) -> list[Judgement]:
        asked.extend(questions)
        return [Judgement(0.8), Judgement(None, "cannot tell")]

    texts = (("x", "x"), ("x", "y"), ("", "y"), ("y", "x"))
    questions = [Question(_principle(), "Q", a, b) for a, b in texts]
    assert preferences(questions, compare) == [0.5, 0.8, 0.0, None]
    assert [d.unscored for d in decisions(questions, compare)] == [None, None, None, "cannot tell"]
    del asked[2:]
    assert asked == [questions[1], questions[3]]
    assert preferences([questions[0]], compare) == [0.5]
    assert len(asked) == 2
