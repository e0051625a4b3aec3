"""Two processes on the CPU learn what one would, and go on after one of them was killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from accelerate.commands.config.config_args import load_config_from_file

import solon
from tests import tiny_run

_SAME = ("policy_loss", "value_loss", "score", "kl", "grad_norm", "explained_variance", "entropy")


_CONFIGURATIONS = sorted((Path(solon.__file__).parent / "data" / "recipes" / "accelerate").glob("*.yaml"))


def _launch(recipe: Path, folder: Path, configuration: Path | None = None) -> list[str]:
    """By torchrun, or by accelerate with a configuration: else it starts one process if there is no GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = (
        ("torch.distributed.run", "--nproc_per_node", "2", "--master_port", port)
        if configuration is None
        else (
            *("accelerate.commands.launch", "--config_file", str(configuration)),
            *("--dynamo_backend", "no", "--main_process_port", port),
        )
    )
    run = ("-m", "solon", "run", str(recipe), "--run-dir", str(folder))
    return [sys.executable, "-m", *launcher, *run]


def _finish(recipe: Path, folder: Path, configuration: Path | None = None) -> str:
    """Run to the end in two processes; what they said on stdout."""
    command = _launch(recipe, folder, configuration)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((folder / "08_reinforce" / "manifest.json").read_text())
    assert manifest["metrics"]["processes"] == 2
    return done.stdout


def _steps(folder: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "08_reinforce" / "rows.parquet").to_pylist()
    return [json.loads(row["metrics"]) for row in rows]


@pytest.fixture(scope="module")
def recipe(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Sums in another order are rounded otherwise, and where the first step's gradient is next to nothing Adam
    # makes a whole step of that: a seed by which no answer of the second hangs on it.
    return tiny_run.write(tmp_path_factory.mktemp("recipe"), tiny_model_folder, seed=1)


@pytest.fixture(scope="module")
def one(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "one"
    tiny_run.open_run(recipe, folder).execute("reinforce")
    return _steps(folder)


def _assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for name in _SAME:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
        assert ours["ratio_error"] < 1e-5


def test_two_processes_whiten_and_learn_as_one(
    recipe: Path, one: list[dict[str, Any]], tmp_path: Path
) -> None:
    said = _finish(recipe, tmp_path / "two")
    _assert_same(_steps(tmp_path / "two"), one)
    assert said.count("9/9 evaluate") == 1, "the second process says nothing"


def test_two_processes_level_the_answers_of_a_prompt_as_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    """As the shipped recipes do; a prompt's answers are all of one process."""
    settings = tiny_run.recipe(tiny_model_folder)["reinforce"] | {"centre_scores": "prompt", "group": 2}
    levelled = tiny_run.write(tmp_path / "recipe", tiny_model_folder, reinforce=settings)
    tiny_run.open_run(levelled, tmp_path / "one").execute("reinforce")
    _finish(levelled, tmp_path / "two")
    _assert_same(_steps(tmp_path / "two"), _steps(tmp_path / "one"))


@pytest.mark.parametrize("file", _CONFIGURATIONS, ids=lambda file: file.stem)
def test_a_shipped_configuration_is_one_of_accelerate(file: Path) -> None:
    found = load_config_from_file(str(file))
    assert found.num_processes >= 2
    assert f"--config_file recipes/accelerate/{file.name} -m solon run" in file.read_text(encoding="utf-8")


def test_a_trunk_divided_by_fsdp2_learns_the_same(
    recipe: Path, one: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    file = next(file for file in _CONFIGURATIONS if file.stem == "fsdp2")
    _finish(recipe, folder, file)
    _assert_same(_steps(folder), one)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["processes"] for e in events if e["event"] == "divided"] == [2]


def test_a_vanished_process_stops_all_and_nothing_is_lost(
    recipe: Path, one: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    with subprocess.Popen(
        _launch(recipe, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as running:
        _kill_one(running, folder)
        assert running.wait(timeout=120) != 0
    assert not (folder / "08_reinforce" / "manifest.json").exists()
    _finish(recipe, folder)
    _assert_same(_steps(folder), one)


def _kill_one(running: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Kill the last of the launcher's children once PPO has begun."""
    plan, deadline = folder / "08_reinforce" / "plan.json", time.monotonic() + 120
    while not plan.exists():
        assert time.monotonic() < deadline, "PPO never began"
        time.sleep(0.02)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
