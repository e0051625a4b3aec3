"""Two processes on the CPU learn what one would, and go on after one of them was killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from accelerate.commands.config.config_args import load_config_from_file

import solon
from tests import tiny_run

_SAME = ("policy_loss", "value_loss", "score", "kl", "grad_norm", "explained_variance", "entropy")


_CONFIGURATIONS = sorted((Path(solon.__file__).parent / "data" / "recipes" / "accelerate").glob("*.yaml"))
_CPU = ("--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")


def _launch(recipe: Path, folder: Path, how: Sequence[str] = _CPU) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", *how, "--dynamo_backend", "no"),
        *("--main_process_port", str(port), "-m", "solon", "run", str(recipe), "--run-dir", str(folder)),
    ]


def _finish(recipe: Path, folder: Path, how: Sequence[str] = _CPU) -> str:
    """Run to the end in two processes; what they said on stdout."""
    done = subprocess.run(_launch(recipe, folder, how), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _steps(folder: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "08_reinforce" / "rows.parquet").to_pylist()
    return [json.loads(row["metrics"]) for row in rows]


@pytest.fixture(scope="module")
def recipe(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write(tmp_path_factory.mktemp("recipe"), tiny_model_folder)


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
    _finish(recipe, folder, ("--config_file", str(file)))
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
