"""The warnings that stand first in a report: each where it belongs, and not elsewhere."""

from typing import Any

import pytest

from solon.summary import warnings


def _sort(accuracy: float, low: float, n: int, kind: str = "helpful") -> dict[str, Any]:
    return {"kind": kind, "crossed": False, "accuracy": accuracy, "ci95": [low, 0.9], "n": n}


def _reward(low: float, *sorts: dict[str, Any]) -> dict[str, Any]:
    figures = {"heldout_accuracy": 0.7, "ci95": [low, 0.9], "n": 60, "by_pairs": list(sorts)}
    return {"reward_model": figures}


def test_a_reward_model_at_chance_on_one_sort_of_pairs_is_warned_of() -> None:
    good, chance = _sort(0.9, 0.7, 20, "red_team"), _sort(0.6, 0.45, 40)
    [told] = warnings(_reward(0.6, good, chance))
    assert "held-out pairs on ordinary prompts (60% of 40, 95 % interval 45% to 90%)" in told


@pytest.mark.parametrize("sort", [_sort(0.6, 0.45, 9), _sort(0.6, 0.51, 40)])
def test_few_pairs_and_good_ones_are_not_warned_of(sort: dict[str, Any]) -> None:
    assert warnings(_reward(0.6, sort)) == []


def test_a_reward_model_at_chance_on_all_pairs_is_said_once() -> None:
    [told] = warnings(_reward(0.5, _sort(0.6, 0.45, 40)))
    assert "what learned from its scores learned from noise" in told


def _pairwise(n: int, **unscored: int) -> dict[str, Any]:
    pair = {"a": "rl", "b": "sl", "on": "red_team", "n": n, "unscored": unscored}
    return {"evaluation": {"pairwise": [pair]}}


def test_many_pairs_without_a_verdict_are_warned_of() -> None:
    [told] = warnings(_pairwise(80, empty=9, long=11))
    assert "no verdict on 20 of 100 pairs of rl and sl on red-team prompts (9 × empty, 11 × long)" in told
    assert warnings(_pairwise(90, empty=10)) == []
    assert warnings(_pairwise(0)) == []


def test_more_degenerate_answers_than_base_are_warned_of_by_kind() -> None:
    def model(red_team: float, helpful: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for on, rate in (("red_team", red_team), ("helpful", helpful)):
            found |= {f"degenerate_{on}_rate": rate, f"degenerate_{on}_ci95": [rate - 0.1, rate + 0.1]}
        return found

    models = {"base": model(0.2, 0.2), "sl": model(0.4, 0.4), "rl": model(0.41, 0.2)}
    [told] = warnings({"evaluation": {"models": models}})
    assert told == "41% of the model rl's answers to red-team prompts are degenerate, 20% of base's."


def test_a_judge_that_is_best_of_several_by_chance_is_warned_of() -> None:
    judge = {"check_accuracy": 0.7, "check_n": 30, "check_ci95": [0.52, 0.83]}
    assert warnings({"judge": {**judge, "check_weak": False}}) == []
    [told] = warnings({"judge": {**judge, "check_weak": True}})
    assert "The judge is not shown to be better than chance" in told
