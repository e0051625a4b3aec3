"""The guard at work: which checks are kept, when it stops, and what it goes back to."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from solon.constitution import load_constitution
from solon.feedback.base import Judgement, Question
from solon.recipe import Recipe
from solon.records import Prompt, PromptKind
from solon.stages.rating import Watch
from solon.training.guard import Rated, best
from solon.training.rollout import Episode

KINDS: tuple[PromptKind, ...] = ("red_team", "helpful") * 12


def _rated(step: int, red_team: float, helpful: float) -> Rated:
    """Scores that rise with the steps, ratings around these means."""
    mean = {"red_team": red_team, "helpful": helpful}
    ratings = tuple(mean[kind] + 0.02 * (-1) ** (i // 2) for i, kind in enumerate(KINDS))
    return Rated(step, (0.1 * step,) * len(KINDS), ratings, KINDS)


class _Prepared(Watch):
    """With ratings that are given, in the place of a policy's and a judge's."""

    def __init__(self, folder: Path, *checks: Rated) -> None:
        nobody: Any = type("Nobody", (), {"answer": lambda *_, **__: []})()
        super().__init__(Recipe(name="r"), nobody, nobody, nobody, [], folder)
        self._coming = iter(checks)

    def _rated(self, step: int, answers: Any) -> Rated:
        return next(self._coming)


def _tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([value])}


def test_what_is_gamed_on_one_kind_is_not_kept_however_it_is_rated_on_the_whole(tmp_path: Path) -> None:
    """It refuses everything: red-team prompts gain more than ordinary ones lose."""
    checks = _rated(0, 0.5, 0.5), _rated(4, 0.6, 0.52), _rated(8, 0.95, 0.25)
    assert best(checks) is checks[-1]
    watch = _Prepared(tmp_path / "good", *checks)
    watch.begin(_tensors(0.0))
    assert not watch.check(4, _tensors(4.0)).over_optimised
    assert (watch.good, watch.stopped) == (4, False)
    assert watch.check(8, _tensors(8.0)).gamed_on == "helpful"
    assert (watch.good, watch.stopped) == (4, True)
    assert float(watch.good_tensors()["weight"]) == 4.0
    again = _Prepared(tmp_path / "good")
    again.restore(watch.state())
    assert (again.good, again.stopped) == (4, True)


def test_only_the_best_checks_weights_are_left_once_a_checkpoint_says_so(tmp_path: Path) -> None:
    watch = _Prepared(tmp_path / "good", _rated(0, 0.5, 0.5), _rated(4, 0.6, 0.6))
    watch.tidy()
    watch.begin(_tensors(0.0))
    watch.check(4, _tensors(4.0))
    assert sorted(p.name for p in (tmp_path / "good").iterdir()) == ["0", "4"], "the checkpoint still says 0"
    watch.tidy()
    assert [p.name for p in (tmp_path / "good").iterdir()] == ["4"]
    assert float(watch.good_tensors()["weight"]) == 4.0


class _Answers:
    """A policy that says these texts, one round after the other, to two prompts."""

    def __init__(self, *rounds: tuple[str, str]) -> None:
        self._rounds = iter(rounds)

    def answer(self, prompts: Any, seeds: Any) -> list[tuple[Episode, str]]:
        return [
            (Episode((1,), (2,), True, p.kind), t) for p, t in zip(prompts, next(self._rounds), strict=True)
        ]


class _Judged(Watch):
    """With a judge that likes long answers, and keeps what it was asked."""

    def __init__(self, folder: Path, policy: _Answers) -> None:
        prompts = [Prompt(text=f"How {i}?", kind="red_team", split="train", origin="test") for i in range(2)]
        inputs = SimpleNamespace(constitution=load_constitution("harmless"))
        super().__init__(Recipe(name="r"), inputs, policy, lambda e: torch.zeros(len(e)), prompts, folder)  # type: ignore[arg-type]
        self.asked: list[Question] = []

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        self.asked.extend(questions)
        return [Judgement(0.9 if len(q.a) > len(q.b) else 0.1) for q in questions]

    def _opened(self) -> Any:
        return self


def test_a_run_that_goes_on_meets_the_same_first_answers(tmp_path: Path) -> None:
    """Trained whole, the policy of a run that goes on is the SL model no more: it cannot say them again."""
    watch = _Judged(tmp_path, _Answers(("A short one.", "Another.")))
    watch.begin(_tensors(0.0))
    again = _Judged(tmp_path, _Answers(("A longer one than before.", "No.")))
    again.restore(watch.state())
    again.check(4, _tensors(4.0))
    assert [(q.a, q.b) for q in again.asked] == [
        ("A longer one than before.", "A short one."),
        ("No.", "Another."),
    ]


def test_an_answer_without_a_word_is_the_worst_and_asks_no_judge(tmp_path: Path) -> None:
    watch = _Judged(tmp_path, _Answers(("Yes, so.", " "), ("", ""), ("Yes, so.", "Now.")))
    watch.begin(_tensors(0.0))
    assert watch.check(4, _tensors(4.0)).rating == pytest.approx(0.25), "the first lost, the second ties"
    assert watch.check(8, _tensors(8.0)).rating == pytest.approx(0.75), "the second won over nothing"
    assert not watch.asked


@pytest.mark.parametrize("second", [0.52, 0.5])
def test_the_best_sound_check_is_kept_of_equals_the_later(tmp_path: Path, second: float) -> None:
    watch = _Prepared(tmp_path / "good", _rated(0, 0.5, 0.5), _rated(4, second, second), _rated(8, 0.4, 0.5))
    watch.begin(_tensors(0.0))
    watch.check(4, _tensors(4.0))
    watch.check(8, _tensors(8.0))
    assert watch.good == 4
    assert float(watch.good_tensors()["weight"]) == 4.0
