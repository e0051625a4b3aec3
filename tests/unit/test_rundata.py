"""What a run folder's readers take for the run's own, and what for a leftover of an older recipe."""

import json
from pathlib import Path

from solon.plan import STAGES
from solon.report.page import write_report
from solon.report.rundata import finished_stages, read_run
from tests.unit import report_fixture as fixture


def test_what_the_summary_does_not_list_is_a_leftover(tmp_path: Path) -> None:
    """A full run, then one of other settings that ended before PPO: its curves are not the old run's."""
    run = fixture.make_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    partial = {key: summary[key] for key in ("recipe", "warnings")} | {"stages": summary["stages"][:3]}
    (run / "summary.json").write_text(json.dumps(partial))
    assert list(finished_stages(run)) == ["red_team", "preflight", "revise"]
    data = read_run(run)
    assert data.revised
    assert (data.ppo, data.answers, data.verdicts) == ([], [], [])
    assert "Reward against distance" not in write_report(run).read_text(encoding="utf-8")


def test_what_follows_an_unfinished_stage_is_a_leftover(tmp_path: Path) -> None:
    run = fixture.make_run(tmp_path / "run", summary=False)
    assert list(finished_stages(run)) == [stage.name for stage in STAGES]
    (run / "03_revise" / "manifest.json").unlink()
    assert list(finished_stages(run)) == ["red_team", "preflight"]
    data = read_run(run)
    assert (data.revised, data.ppo, data.answers, data.verdicts) == ([], [], [], [])
    assert [stage["name"] for stage in data.stages] == ["red_team", "preflight"]


def test_a_preflight_that_nothing_reads_yet_hides_nothing_before_the_labels(tmp_path: Path) -> None:
    run = fixture.make_run(tmp_path / "run", summary=False)
    (run / "02_preflight" / "manifest.json").unlink()
    assert list(finished_stages(run)) == ["red_team", "revise", "finetune", "sample"]


def test_how_to_reproduce_says_what_the_folder_lacks(tmp_path: Path) -> None:
    page = write_report(fixture.make_run(tmp_path / "run")).read_text(encoding="utf-8")
    said = page[page.index('id="reproduce"') : page.index('id="glossary"')]
    for part in ("relative path", "prompt files", "check file", "model"):
        assert part in said
    assert said.index("relative path") < said.index("solon run recipe.yaml")
