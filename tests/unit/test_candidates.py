"""Candidate revisions: by hand, and all threads in one call."""

from collections.abc import Sequence

import pytest

from solon.constitution import Principle
from solon.feedback.base import Judgement, Question
from solon.stages.candidates import Candidates, Standing, mean_wins, standings

PRINCIPLE = Principle(id="kind", about="a", critique="c", revision="r", question="q?")


class _Table:
    """Prefers by numbers that stand for the texts; cannot tell where a text has none."""

    name = "table"

    def __init__(self, **worth: float) -> None:
        self._worth = worth
        self.calls: list[list[Question]] = []

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        self.calls.append(list(questions))
        return [self._one(q) for q in questions]

    def _one(self, question: Question) -> Judgement:
        if not {question.a, question.b} <= set(self._worth):
            return Judgement(None, "no number")
        return Judgement(0.5 + self._worth[question.a] - self._worth[question.b])


def _thread(*texts: str, before: str = "old", first: str = "old", prompt: str = "Q") -> Candidates:
    return Candidates(Question(PRINCIPLE, prompt, "", "", kind="red_team"), texts, before, first)


def test_a_standing_by_hand() -> None:
    judge = _Table(good=0.3, bad=-0.1, old=0.0, oldest=-0.2)
    (found,) = standings(judge, [_thread("good", "bad", first="oldest")])
    # good: 0.9 against bad and 0.8 against old; bad: 0.1 and 0.4
    expected = [Standing(0.85, 0.8, 1.0), Standing(0.25, 0.4, 0.6)]
    for ours, by_hand in zip(found, expected, strict=True):
        assert vars(ours) == pytest.approx(vars(by_hand))


def test_all_threads_are_asked_in_one_call_and_keep_apart() -> None:
    judge = _Table(a=0.2, b=0.1, c=-0.1, old=0.0, x=0.3)
    threads = [_thread("a", "b", prompt="Q1"), _thread(prompt="Q2"), _thread("c", before="x", prompt="Q3")]
    together = standings(judge, threads)
    assert len(judge.calls) == 1
    assert [(q.prompt, q.a, q.b) for q in judge.calls[0]] == [
        ("Q1", "a", "b"),
        ("Q1", "a", "old"),
        ("Q1", "b", "old"),
        ("Q3", "c", "x"),
        ("Q3", "c", "old"),
    ]
    assert together == [standings(judge, [thread])[0] for thread in threads]
    assert together[1] == []


def test_what_cannot_be_told_is_left_out_of_the_mean_and_is_no_number() -> None:
    (found,) = standings(_Table(a=0.2, old=0.0), [_thread("a", "?")])
    assert found == [Standing(0.7, 0.7, 0.7), Standing(None, None, None)]


def test_any_revision_is_better_than_no_answer() -> None:
    """A judge cannot read an empty text; the candidates among themselves it can."""
    (found,) = standings(_Table(a=0.2, b=0.0), [_thread("a", "b", before="", first="")])
    assert found == [Standing(0.85, 1.0, 1.0), Standing(pytest.approx(0.65), 1.0, 1.0)]


def test_mean_wins_by_hand() -> None:
    found = mean_wins({(0, 1): 0.8, (0, 2): 0.6, (1, 2): None}, 3)
    assert found == pytest.approx([0.7, 0.2, 0.4])
    assert mean_wins({}, 1) == [None]
