"""Before a judge labels: the best of the allowed ones is picked and calibrated, a weak one stops the run."""

import json
from pathlib import Path

import pytest
import yaml

from solon.constitution import Constitution
from solon.engines.base import ScoreRequest
from solon.engines.scripted import ScriptedEngine
from solon.errors import RunError, UsageError
from solon.feedback.opening import Bench, pick
from solon.judge_settings import JudgeSettings
from solon.models import ModelSource
from solon.pipeline import Inputs
from solon.progress import Reporter
from solon.recipe import Recipe
from solon.records import Checked
from solon.stages import preflight
from solon.store import EventLog, Workspace
from solon.summary import warnings
from tests import tiny_run

MODEL = ModelSource("m", "", "m")


def _always_first(request: ScoreRequest) -> list[float]:
    """Chooses (A) with log-odds of 1, whatever is asked."""
    return [1.0 if request.continuation.endswith("A") else 0.0]


def _kindness(request: ScoreRequest, layer: float) -> list[float]:
    """The tiny constitution's better answers say "kind", its worse ones "quickly"."""
    return [float("kind" in request.continuation) + layer, 1.0]


def _constitution() -> Constitution:
    return Constitution.model_validate(tiny_run.constitution())


def _engine() -> ScriptedEngine:
    return ScriptedEngine(logprobs=_always_first, hidden=_kindness)


def _bench(*kinds: str) -> Bench:
    return Bench(JudgeSettings.model_validate({"kind": kinds}), _constitution(), _engine(), "training", 0)


def test_the_judge_that_is_right_most_often_is_picked() -> None:
    picked = pick(_bench("choice", "linear_probe"))
    assert picked.kind == "linear_probe"
    assert not picked.weak
    [own] = picked.checks
    assert (own.kind, own.on, own.accuracy, own.n) == ("linear_probe", "comparisons", 1.0, 15)
    [choice] = picked.measured["choice"]
    # It keeps to the first place: both orders cancel, and a tie is wrong.
    assert (choice.check.accuracy, choice.check.flip_rate) == (0.0, 1.0)
    assert picked.judge.calibration.method == "temperature"
    assert picked.judge.calibration.n == 15


def test_the_check_file_counts_as_well(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"q {i}", "chosen": f"quickly {i}", "rejected": f"kind {i}"} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, pairs)))
    picked = pick(_bench("linear_probe"), file)
    own, outside = picked.checks
    assert (outside.on, outside.n, outside.accuracy) == ("pairs.jsonl", 40, 0.0)
    assert own.beats_chance()
    assert own not in picked.weak
    assert picked.weak
    assert picked.judge.calibration.n == 55


def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **judge: object) -> tuple[Workspace, object]:
    recipe = Recipe.model_validate({"name": "r", "judge": judge})
    monkeypatch.setattr(preflight, "role_engine", lambda recipe, inputs, name: _engine())
    inputs = Inputs(_constitution(), MODEL, {}, tmp_path, {})
    workspace = Workspace("preflight", tmp_path / "s", EventLog(tmp_path / "e"), Reporter(quiet=True))
    workspace.begin("key")
    return workspace, preflight.run(recipe, inputs, workspace)


def test_a_weak_judge_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RunError, match=r"not shown to be better than chance: choice: right on 0% of 15.*allow"
    ):
        _run(tmp_path, monkeypatch, kind="choice")


def test_a_weak_judge_may_be_allowed_and_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, result = _run(tmp_path, monkeypatch, kind=["choice"], allow_weak=True)
    saved = json.loads((workspace.folder / "judge.json").read_text())
    assert saved["kind"] == "choice"
    rows = result.rows  # type: ignore[attr-defined]
    assert len(rows) == 15
    assert all(isinstance(row, Checked) and row.flipped for row in rows)
    check = result.metrics["checks"]["choice"][0]  # type: ignore[attr-defined]
    assert result.metrics["weak"] == [check["on"]]  # type: ignore[attr-defined]
    figures = {f"check_{name}": check[name] for name in ("accuracy", "n", "ci95")}
    [warning] = warnings({"judge": {**figures, "check_weak": True}})
    told = "The judge is not shown to be better than chance on the constitution's own comparisons (0% of 15"
    assert told in warning


def test_a_missing_check_file_is_found_before_any_work(tmp_path: Path) -> None:
    from solon.plan import check_paths

    recipe = Recipe.model_validate(yaml.safe_load("{name: r, judge: {check: nowhere.jsonl}}"))
    with pytest.raises(UsageError, match=r"judge\.check: there is no file .*nowhere\.jsonl"):
        check_paths(recipe, tmp_path)
