"""A reward that a user writes: found, used, and refused with the file's name."""

from pathlib import Path

import pytest
import torch

from solon.errors import RunError, UsageError
from solon.plan import shaping_path
from solon.recipe import Recipe
from solon.training.shaping import load_shaping, shape
from tests.ppo_setup import EPISODES

BRIEF = """
import torch

def brief(episodes, scores):
    return scores - 0.01 * torch.tensor([len(e.answer) for e in episodes])
"""


def _recipe(reward: str) -> Recipe:
    return Recipe.model_validate({"name": "x", "reinforce": {"reward": reward}})


def test_a_length_penalty_in_five_lines(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(BRIEF)
    found = shaping_path(_recipe("rewards.py:brief"), tmp_path)
    assert found is not None
    reward = shape(lambda episodes: torch.ones(len(episodes)), load_shaping(*found))
    torch.testing.assert_close(reward(EPISODES), torch.tensor([0.98, 0.96, 0.99, 0.97]))


@pytest.mark.parametrize("given", ["rewards.py", "rewards.py:", ":brief", "rewards.py:not a name"])
def test_what_is_not_a_file_and_a_function_is_refused(given: str, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(BRIEF)
    with pytest.raises(UsageError, match=r"rewards\.py:brief"):
        shaping_path(_recipe(given), tmp_path)


def test_faults_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        shaping_path(_recipe("absent.py:brief"), tmp_path)
    path = tmp_path / "rewards.py"
    path.write_text("1 / 0")
    with pytest.raises(UsageError, match=r"rewards\.py fails \(ZeroDivisionError"):
        load_shaping(path, "brief")
    path.write_text("brief = 3")
    with pytest.raises(UsageError, match="has no function brief"):
        load_shaping(path, "brief")


def test_what_is_no_tensor_is_refused() -> None:
    reward = shape(lambda episodes: torch.ones(len(episodes)), lambda episodes, scores: scores.tolist())
    with pytest.raises(RunError, match="gives a list"):
        reward(EPISODES)


def test_a_file_may_have_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Rule:\n    by: float\n\n"
        "def less(episodes, scores):\n    return scores - Rule(1.0).by\n"
    )
    reward = shape(lambda episodes: torch.ones(len(episodes)), load_shaping(path, "less"))
    assert reward(EPISODES).tolist() == [0.0] * 4
