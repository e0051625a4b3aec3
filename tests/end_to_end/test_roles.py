"""Roles from the command line: a tiny policy whose critic, judge and evaluator are models on servers."""

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from solon.cli import app
from solon.records import Label, Verdict, Written
from solon.store import read_rows
from tests import tiny_run
from tests.unit.chat_server import Answer, Asked, message, serving


def _judges(asked: Asked) -> Answer:
    """Likes the answer whose text is longer, whichever letter it has."""
    text = asked.body["messages"][-1]["content"]
    a, b = (len(text.rsplit(f"Answer ({letter}):", 1)[1].splitlines()[0]) for letter in "AB")
    letters = [("(A)", -0.3), ("(B)", -1.3)] if a > b else [("(A)", -1.3), ("(B)", -0.3)]
    return Answer(message(letters[0][0], [(letters[0][0], letters)]))


def _writes(asked: Asked) -> Answer:
    return Answer(message(f"A text about {len(asked.body['messages'])} turns, written by the critic."))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the cache of answers: not the user's own."""
    monkeypatch.setattr("solon.engines.opening.cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def _run(recipe: Path, folder: Path, *settings: str) -> str:
    told = [part for setting in settings for part in ("--set", setting)]
    result = CliRunner().invoke(app, ["run", str(recipe), "--run-dir", str(folder), *told])
    assert result.exit_code == 0, result.output
    return result.output


def test_two_settings_move_the_judge_to_a_server(home: Path, tiny_model_folder: Path) -> None:
    """The recipe names linear_probe; the server's one model is found, and nothing is asked twice."""
    recipe = tiny_run.write(home / "recipe", tiny_model_folder, judge={"kind": "linear_probe"})
    with serving(_judges, ["large"]) as server:
        where = ("judge.engine=http", f"judge.endpoints=[{server.url}]", "judge.allow_weak=true")
        _run(recipe, home / "run", *where)
        labels = read_rows(home / "run" / "06_label" / "rows.parquet", Label)
        verdicts = read_rows(home / "run" / "09_evaluate" / "rows.parquet", Verdict)
        asked = len(server.asked)
        assert {one.body["model"] for one in server.asked} == {"large"}
        assert all(row.p_a is not None for row in labels)
        assert len(verdicts) > 0
        _run(recipe, home / "again", *where)
        assert len(server.asked) == asked
    again = read_rows(home / "again" / "06_label" / "rows.parquet", Label)
    assert list(again) == list(labels)


def test_every_role_has_a_model_of_its_own(home: Path, tiny_model_folder: Path) -> None:
    recipe = tiny_run.write(home / "recipe", tiny_model_folder, judge={"kind": "choice", "allow_weak": True})
    with serving(_writes) as critic, serving(_judges) as evaluator:
        _run(
            recipe,
            home / "run",
            *("critic.engine=http", f"critic.endpoints=[{critic.url}]", "critic.model=writer"),
            *("evaluator.engine=http", f"evaluator.endpoints=[{evaluator.url}]", "evaluator.model=other"),
            *("evaluator.kind=choice", "evaluator.allow_weak=true"),
        )
    rows = read_rows(home / "run" / "03_revise" / "rows.parquet", Written)
    by = Counter((row.kind, row.origin == "writer") for row in rows)
    assert by["answer", False] > 0
    assert by["critique", True] > 0
    assert by["revision", True] > 0
    assert by.keys() == {("answer", False), ("critique", True), ("revision", True)}
    assert {one.body["model"] for one in critic.asked} == {"writer"}
    assert {one.body["model"] for one in evaluator.asked} == {"other"}
    assert not list((home / "run").rglob("*.sqlite"))
