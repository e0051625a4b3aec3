"""Judges measured from the command line, and what a run's labels keep of them, on a tiny random model."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from solon.cli import app
from solon.constitution import load_constitution
from solon.errors import RunError
from solon.feedback.flips import flips
from solon.records import Checked, Label
from solon.store import read_manifest, read_rows
from tests import tiny_run


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A run up to its labels: the better of two judges, two principles a pair, near-ties dropped."""
    home = tmp_path_factory.mktemp("labelled")
    judge = {"kind": ["choice", "score"], "principles": 2, "allow_weak": True, "calibration": "isotonic"}
    label = {"pairs": 3, "batch": 4, "margin": 0.01, "effects": 5}
    recipe = tiny_run.write(home / "recipe", tiny_model_folder, judge=judge, label=label)
    tiny_run.open_run(recipe, home / "run").execute("label")
    return home / "run"


def test_labels_keep_what_the_judge_said(labelled: Path) -> None:
    rows = read_rows(labelled / "06_label" / "rows.parquet", Label)
    assert rows
    for row in rows:
        assert row.p_a is not None
        assert row.p_raw is not None
        assert row.disagreement is not None
        assert row.asked[0] == row.principle
        assert len(set(row.asked)) == 2
        assert (row.dropped == "near-tie") == (abs(row.p_a - 0.5) < 0.01)
    manifest = read_manifest(labelled / "06_label")
    assert manifest is not None
    assert manifest.metrics["dropped"] == {"near-tie": sum(row.dropped is not None for row in rows)}
    assert manifest.metrics["effects"]["pairs"] == 5
    assert len(manifest.metrics["effects"]["agreement"]) == 3
    calibration = json.loads((labelled / "06_label" / "calibration.json").read_text())
    assert calibration["method"] == "isotonic"


def test_a_reworded_question_flips_labels_and_an_equal_one_does_not(labelled: Path, tmp_path: Path) -> None:
    old = load_constitution(labelled / "constitution.yaml")
    data = tiny_run.constitution()
    data["principles"][1]["question"] = "Which of the two answers is written the way a sailor would write?"
    path = tmp_path / "new.yaml"
    path.write_text(yaml.safe_dump(data))
    new = load_constitution(path)
    [found] = flips(old, new, labelled, 12)
    assert found.principle == "p1"
    assert 0 <= found.flipped <= found.scored
    assert found.scored == min(12, len(read_rows(labelled / "06_label" / "rows.parquet", Label)))
    assert all(one.flipped == 0 for one in flips(old, old, labelled, 12))
    with pytest.raises(RunError, match="holds no labels"):
        list(flips(old, new, tmp_path, 12))
    result = CliRunner().invoke(
        app, ["constitution", "diff", str(labelled / "constitution.yaml"), str(path), "--run", str(labelled)]
    )
    assert "~ p1 question:" in result.output
    assert "it would prefer the other answer on" in result.output


def _pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [
        {
            "prompt": f"How do I mend a {thing}?",
            "chosen": f"Take the {thing} apart, slowly.",
            "rejected": "No.",
        }
        for thing in ("boat", "clock", "map", "lamp", "radio", "bridge")
    ]
    path.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "rejected": ""}])))
    return path


@pytest.fixture
def constitution(tmp_path: Path) -> Path:
    path = tmp_path / "constitution.yaml"
    path.write_text(yaml.safe_dump(tiny_run.constitution(), sort_keys=False))
    return path


@pytest.mark.parametrize(
    "kind", ["linear_probe", "choice", "chain_of_thought", "likelihood", "score", "ensemble"]
)
def test_every_judge_can_be_measured_on_a_file(
    kind: str, constitution: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = _pairs(tmp_path)
    arguments = ["judge", "--model", tiny_model_folder, "--judge", kind, "--constitution", constitution]
    more = ["--data", data, "--out", out, "--set", "thinking.sampling.max_tokens=8"]
    result = CliRunner().invoke(app, [str(a) for a in (*arguments, *more)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    check = json.loads((out / "check.json").read_text())["check"]
    rows = read_rows(out / "judgements.parquet", Checked)
    assert len(rows) == 6
    assert check["left_out"] == {"an answer is empty": 1}
    scored = [row.p_better for row in rows if row.p_better is not None]
    assert check["n"] == len(scored) > 0
    assert check["accuracy"] == sum(p > 0.5 for p in scored) / len(scored)
    assert (check["flip_rate"] is None) == (kind not in ("choice", "chain_of_thought"))
    assert check["shorter"] == 0.0
    assert f"{kind} on pairs.jsonl: right on" in result.output
    assert (out / "reliability.svg").read_text().startswith("<svg")


def test_principles_have_unit_tests(constitution: Path, tiny_model_folder: Path) -> None:
    arguments = ["constitution", "test", constitution, "--model", tiny_model_folder, "--failures"]
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    rows = [line for line in result.output.splitlines() if line.startswith("│ p")]
    assert len(rows) == 3
    assert all("│ 5" in row for row in rows)
    assert "of 15 comparisons are judged as the constitution says." in result.output
