"""PPO and its neighbours side by side in one run: each trained, kept and compared."""

from pathlib import Path

import pytest

from solon.errors import UsageError
from solon.report.page import write_report
from solon.summary import write_summary
from tests import tiny_run


def test_a_run_compares_algorithms(tmp_path: Path, tiny_model_folder: Path) -> None:
    recipe = tiny_run.write(tmp_path / "r", tiny_model_folder)
    folder = tmp_path / "run"
    run = tiny_run.open_run(
        recipe,
        folder,
        "reinforce.algorithm=[ppo, rloo, grpo, dpo]",
        "reinforce.group=2",
        "reinforce.steps=2",
    )
    done = run.execute()
    summary = write_summary(folder, run.recipe, run.constitution, done)
    names = ["base", "sl", "rl", "rloo", "grpo", "dpo"]
    assert list(summary["evaluation"]["models"]) == names
    assert [r["model"] for r in summary["evaluation"]["ratings"] if r["on"] == "red_team"] == names
    assert summary["ppo"]["steps"] == 2, "the neighbours' steps are not PPO's"
    weights = {
        name: (folder / "08_reinforce" / name / "model.safetensors").read_bytes()
        for name in ("model", "rloo", "grpo", "dpo")
    }
    assert len(set(weights.values())) == 4
    page = write_report(folder).read_text()
    assert "RLOO" in page
    assert "GRPO" in page
    again = tiny_run.open_run(
        recipe,
        folder,
        "reinforce.algorithm=[ppo, rloo, grpo, dpo]",
        "reinforce.group=2",
        "reinforce.steps=2",
    ).execute()
    assert all(reused for _, reused in again)


def test_only_ppo_shares_its_work_and_this_is_said_before_any(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_run.write(tmp_path / "r", tiny_model_folder)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="rloo: 2 processes were launched, and only ppo shares its work"):
        tiny_run.open_run(recipe, tmp_path / "run", "reinforce.algorithm=[ppo, rloo]", "reinforce.group=2")
    assert not (tmp_path / "run").exists()
