"""Which folders a run takes as its own, and which it refuses, before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from solon import store
from solon.errors import RunError, UsageError
from solon.pipeline import Run
from solon.progress import Reporter
from solon.recipe import load_recipe
from tests import tiny_run


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Path:
    return tiny_run.write(tmp_path / "recipe", tiny_model_folder)


def test_a_kill_in_the_first_write_does_not_lock_the_folder_out(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def killed(descriptor: int) -> None:
        # As by kill -9: nobody removes the temporary file.
        (folder / ".recipe.yaml.partial").rename(folder / ".other.yaml.partial")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_run.open_run(recipe, folder).execute("red_team")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".other.yaml.partial"]
    tiny_run.open_run(recipe, folder)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "recipe.yaml.partial"])
def test_a_folder_of_something_else_is_refused(name: str, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    with pytest.raises(UsageError, match="not empty and no run folder"):
        tiny_run.open_run(recipe, tmp_path / "run")


def test_a_file_on_the_way_is_named(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "sub", tmp_path / "file" / "sub" / "run"):
        with pytest.raises(UsageError, match=r"file: this is a file\. Name another folder with --run-dir"):
            tiny_run.open_run(recipe, folder)


def test_a_name_too_long_is_a_message(recipe: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-c", "from solon.cli import main; main()", "run", str(recipe), "--run-dir"]
    done = subprocess.run([*call, str(tmp_path / ("x" * 300))], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "File name too long. Choose another path" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_needs_no_model_is_checked_before_one_is_fetched(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "red_team.jsonl").unlink()
    with pytest.raises(UsageError, match=r"red_team\.jsonl: no such file"):
        tiny_run.open_run(recipe, tmp_path / "run", "model=somebody/a-large-model")


def test_a_runs_recipe_names_its_models_folder_from_anywhere(
    recipe: Path, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_folder.parent)
    changes = (f"model={tiny_model_folder.name}", "red_team.written=0")
    tiny_run.open_run(recipe, tmp_path / "run", *changes).execute("red_team")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(tmp_path / "run" / "recipe.yaml")[0].model == str(tiny_model_folder)


def test_an_evaluator_on_a_server_that_is_away_is_missed_at_once(recipe: Path, tmp_path: Path) -> None:
    away = "evaluator={engine: http, model: m, endpoints: ['http://127.0.0.1:9/v1'], kind: choice}"
    run = tiny_run.open_run(recipe, tmp_path / "run", away, "red_team.written=0")
    with pytest.raises(RunError, match=r"no server answers there.*evaluator\.endpoints"):
        run.execute()
    assert len(run.execute("red_team")) == 1, "nobody needs it yet"


def test_a_run_is_reused_from_its_own_recipe(
    recipe: Path, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_folder.parent)
    folder = tmp_path / "run"
    changes = (
        "red_team.written=0",
        f"judge.model={tiny_model_folder.name}",
        f"model={tiny_model_folder.name}",
    )
    tiny_run.open_run(recipe, folder, *changes).execute("preflight")
    written, _ = load_recipe(folder / "recipe.yaml")
    assert written.judge.model == str(tiny_model_folder)
    again = Run(written, recipe.parent, folder, Reporter(quiet=True)).plan("preflight")
    assert all(line.reused for line in again)
