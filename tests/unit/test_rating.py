"""The guard at work: which checks are kept, when it stops, and what it goes back to."""

from pathlib import Path
from typing import Any

import pytest
import torch

from solon.recipe import Recipe
from solon.records import PromptKind
from solon.stages.rating import Watch
from solon.training.guard import Rated, best

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


@pytest.mark.parametrize("second", [0.52, 0.5])
def test_the_best_sound_check_is_kept_of_equals_the_later(tmp_path: Path, second: float) -> None:
    watch = _Prepared(tmp_path / "good", _rated(0, 0.5, 0.5), _rated(4, second, second), _rated(8, 0.4, 0.5))
    watch.begin(_tensors(0.0))
    watch.check(4, _tensors(4.0))
    watch.check(8, _tensors(8.0))
    assert watch.good == 4
    assert float(watch.good_tensors()["weight"]) == 4.0
