"""The command line as a user meets it: one clear message, the right code, a kill -9 that costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solon.plan import STAGES
from tests import tiny_run

SOLON = [sys.executable, "-c", "from solon.cli import main; main()"]


def solon(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    call = [*SOLON, *map(str, arguments)]
    return subprocess.run(
        call, capture_output=True, text=True, cwd=cwd, check=False, stdin=subprocess.DEVNULL
    )


def _fails(result: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_help_of_every_command() -> None:
    for command in ([], ["run"], ["chat"], ["report"], ["evaluate"], ["init"], ["models"], ["constitution"]):
        result = solon(*command, "--help")
        assert result.returncode == 0
        assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["run", "demo", "--until", "lunch"], ["no such stage", "reinforce"]),
        (["run", "demo", "--set", "revise.rouns=2"], ["Did you mean `rounds`"]),
        (["run", "demo", "--set", "constitution=nobody"], ["no such file", "harmless"]),
        (["constitution", "check", "nobody.yaml"], ["no such file"]),
    ],
)
def test_wrong_calls_exit_2_with_a_fix(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    _fails(solon(*arguments, cwd=tmp_path), 2, *parts)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = solon("run", "nowhere.yaml", "--debug", cwd=tmp_path)
    assert "Traceback" in result.stderr


def test_chat_and_report_need_a_run(tmp_path: Path) -> None:
    _fails(solon("chat", tmp_path, "--prompt", "hi"), 1, "not a run folder", "solon run")
    _fails(solon("report", tmp_path), 1, "not a run folder")


def test_faulty_prompt_files_are_reported_whole(tmp_path: Path, tiny_model_folder: Path) -> None:
    recipe = tiny_run.write(tmp_path / "r", tiny_model_folder)
    (tmp_path / "r" / "red_team.jsonl").write_text('{"text": ""}\n{"txet": "a"}\n{"text": \n')
    _fails(solon("run", recipe, "--run-dir", tmp_path / "run"), 2, "red_team.jsonl:1", "red_team.jsonl:3")
    (tmp_path / "r" / "red_team.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    _fails(solon("run", recipe, "--run-dir", tmp_path / "run"), 2, "UTF-8")


def test_model_without_weights_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    recipe = tiny_run.write(tmp_path / "r", tmp_path / "empty")
    _fails(solon("run", recipe, "--run-dir", tmp_path / "run"), 2, "empty")


def test_constitution_commands() -> None:
    checked = solon("constitution", "check", "harmless")
    assert checked.returncode == 0
    assert "no problem found" in checked.stdout
    shown = solon("constitution", "show", "pharmacy")
    assert shown.returncode == 0
    assert "pharmacy" in shown.stdout


def test_init_makes_what_check_and_dry_run_accept(tmp_path: Path) -> None:
    folder = tmp_path / "Our Pharmacy"
    assert solon("init", folder).returncode == 0
    assert solon("constitution", "check", folder / "constitution.yaml").returncode == 0
    planned = solon("run", folder / "recipe.yaml", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count("would run") == len(STAGES)
    assert "runs/our-pharmacy" in planned.stdout, "two projects' runs lie apart"
    assert not (tmp_path / "runs").exists()
    _fails(solon("init", folder), 2, "not empty")


def _outputs(folder: Path) -> dict[str, str]:
    read = {s.name: json.loads((folder / s.folder / "manifest.json").read_text()) for s in STAGES}
    return {name: manifest["output"] for name, manifest in read.items()}


def _run_until_killed(recipe: Path, folder: Path, events: int) -> bool:
    """Start the run and kill it after so many new events; False if it ended before."""
    log = folder / "events.jsonl"
    before = log.read_text().count("\n") if log.exists() else 0
    with subprocess.Popen(
        [*SOLON, "run", str(recipe), "--run-dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            now = log.read_text().count("\n") if log.exists() else 0
            if now - before >= events:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.005)
    assert process.returncode == 0
    return False


def _answers_for_blind_reading(run: Path, prompts: Path, out: Path) -> None:
    asked = ("--models", run, "--prompts", prompts, "--max-tokens", 3)
    result = solon("evaluate", *asked, "--out", out)
    assert result.returncode == 0, result.stderr
    read, key = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in (out, out.with_name("blind.key.jsonl"))
    )
    count = len(prompts.read_text(encoding="utf-8").splitlines())
    assert len(read) == len(key) == 3 * count
    assert {model: sum(line["model"] == model for line in key) for model in ("base", "sl", "rl")} == {
        "base": count,
        "sl": count,
        "rl": count,
    }
    _fails(solon("evaluate", *asked, "--out", "x.csv"), 2, "*.jsonl")
    _fails(solon("evaluate", *asked, "--out", out), 2, "readers may have written in it")
    other = out.with_name("other.jsonl")
    _fails(solon("evaluate", *asked, "--models", run, "--out", other), 2, "two models are named killed/base")


def test_kill_9_and_resume_equals_no_interruption(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Three kills at different depths, then to the end: the same rows and models as a run never killed."""
    recipe = tiny_run.write(tmp_path / "r", tiny_model_folder)
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    for events in (5, 14, 9):
        assert _run_until_killed(recipe, killed, events)
    result = solon("run", recipe, "--run-dir", killed)
    assert result.returncode == 0, result.stderr
    assert f"Report:  {killed / 'report.html'}" in result.stdout
    assert "solon chat" in result.stdout
    assert solon("run", recipe, "--run-dir", unbroken).returncode == 0
    assert _outputs(killed) == _outputs(unbroken)
    answered = solon("chat", killed, "--prompt", "How do I mend a clock?", "--max-tokens", 4)
    assert answered.returncode == 0, answered.stderr
    assert all(name in answered.stdout for name in ("base", "sl", "rl"))
    _answers_for_blind_reading(killed, recipe.parent / "red_team.jsonl", tmp_path / "blind.jsonl")
    rewritten = solon("report", killed)
    assert rewritten.returncode == 0
