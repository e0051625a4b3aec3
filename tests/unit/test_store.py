"""The run folder: a torn journal, atomic freezing, a lock between processes."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import RunError, UsageError
from solon.progress import Reporter
from solon.records import Prompt, Row, Written, arrow_schema
from solon.store import (
    Batch,
    EventLog,
    Journal,
    StageResult,
    Workspace,
    forget,
    locked,
    read_manifest,
    read_rows,
    write_atomically,
    write_rows,
)


def _prompt(text: str) -> Prompt:
    return Prompt(origin="file:x", text=text, kind="red_team", split="train")


def _workspace(folder: Path) -> Workspace:
    workspace = Workspace("stage", folder / "s", EventLog(folder / "events.jsonl"), Reporter(quiet=True))
    workspace.begin("key")
    return workspace


@settings(deadline=None)  # each append waits for the disk
@given(cut=st.integers(min_value=0, max_value=400))
def test_journal_survives_a_cut_at_any_byte(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("journal") / "working.jsonl"
    journal = Journal(path)
    for i in range(4):
        journal.append(Batch(str(i), [{"text": "é\n" * i}], 0.5, i))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    survivors = whole[:cut].count(b"\n")
    again = Journal(path)
    assert list(again.batches) == [str(i) for i in range(survivors)]
    again.append(Batch("next", [], 0.0, 0))
    assert list(Journal(path).batches) == [*(str(i) for i in range(survivors)), "next"]


def test_finished_batches_are_not_done_again(tmp_path: Path) -> None:
    plan = [("a", ["one"]), ("b", ["two"]), ("c", ["three"])]
    calls: list[str] = []

    def work(items: list[str]) -> list[Prompt]:
        calls.extend(items)
        if items == ["two"] and calls.count("two") == 1:
            raise KeyboardInterrupt
        return [_prompt(text) for text in items]

    with pytest.raises(KeyboardInterrupt):
        _workspace(tmp_path).batches(plan, Prompt, work, "prompts", int)
    rows = _workspace(tmp_path).batches(plan, Prompt, work, "prompts", int)
    assert calls == ["one", "two", "two", "three"]
    assert [row.text for row in rows] == ["one", "two", "three"]


def test_tokens_of_a_batch_are_those_used_meanwhile(tmp_path: Path) -> None:
    used = [100]

    def work(items: list[str]) -> list[Prompt]:
        used[0] += len(items[0])
        return [_prompt(items[0])]

    workspace = _workspace(tmp_path)
    plan = [("a", ["one"]), ("b", ["three"])]
    rows = workspace.batches(plan, Prompt, work, "prompts", lambda: used[0])
    assert {name: entry.tokens for name, entry in workspace.journal.batches.items()} == {"a": 3, "b": 5}
    assert workspace.counted == 8
    assert workspace.finish("key", Prompt, StageResult(rows, tokens=10), 0.0).tokens == 18


def test_another_key_starts_afresh(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    workspace.batches([("a", ["one"])], Prompt, lambda items: [_prompt(items[0])], "prompts", int)
    workspace.begin("another key")
    assert workspace.journal.batches == {}


def test_rows_round_trip_with_empty_columns(tmp_path: Path) -> None:
    row = Written(
        origin="m",
        prompt_id="p",
        prompt="q",
        prompt_kind="helpful",
        kind="answer",
        text="",
        request="q",
        sampling="{}",
        tokens=0,
        finish="length",
    )
    write_rows(tmp_path / "rows.parquet", Written, [row, row.changed(score=0.5, parents=("a", "b"))])
    again = read_rows(tmp_path / "rows.parquet", Written)
    assert again[0] == row
    assert (again[1].score, again[1].parents) == (0.5, ("a", "b"))
    assert again[1].id != row.id
    write_rows(tmp_path / "none.parquet", Written, [])
    assert list(read_rows(tmp_path / "none.parquet", Written)) == []


def test_schema_names_every_field() -> None:
    assert arrow_schema(Prompt).names == list(Prompt.model_fields)
    assert set(Row.model_fields) <= set(arrow_schema(Written).names)


def test_id_is_of_the_content() -> None:
    assert _prompt("x").id == _prompt("x").id != _prompt("y").id


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(RunError, match=r"rows\.parquet: cannot be read"):
        read_rows(tmp_path / "rows.parquet", Prompt)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        read_manifest(tmp_path)


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom solon.store import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another process works here"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass


def test_events_are_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("step", loss=1.5, text="two\nlines")
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert (event["event"], event["loss"], event["text"]) == ("step", 1.5, "two\nlines")


class _FullError(OSError):
    """Stands for a disk that has no room left."""


def _full(*arguments: object, **settings: object) -> None:
    raise _FullError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(_FullError):
        write_atomically(tmp_path / "a.txt", "new")
    # Half of the file is written before the disk is full.
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", lambda writer, table: _full())
    with pytest.raises(_FullError):
        write_rows(tmp_path / "rows.parquet", Prompt, [_prompt("x")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def _finished(folder: Path) -> Workspace:
    workspace = _workspace(folder)
    workspace.finish("key", Prompt, StageResult([_prompt("x")]), 0.0)
    assert read_manifest(workspace.folder) is not None
    return workspace


def test_a_stage_that_is_being_removed_does_not_look_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _finished(tmp_path)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        workspace.begin("another key")
    assert not (workspace.folder / "manifest.json").exists()
    # Half of the folder may be gone: the work that the old plan names must not go on in the rest.
    assert not (workspace.folder / "plan.json").exists()


def test_a_stage_without_its_rows_is_not_finished_and_starts_afresh(tmp_path: Path) -> None:
    """What else it left, such as a model, has no journal any more that tells how it came about."""
    workspace = _finished(tmp_path)
    (workspace.folder / "model").mkdir()
    (workspace.folder / "rows.parquet").unlink()
    assert read_manifest(workspace.folder) is None
    workspace.begin("key")
    assert [path.name for path in workspace.folder.iterdir()] == ["plan.json"]


def test_an_unfinished_stage_is_not_forgotten(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    workspace.batches([("a", ["one"])], Prompt, lambda items: [_prompt(items[0])], "prompts", int)
    forget(workspace.folder)
    workspace.begin("key")
    assert set(workspace.journal.batches) == {"a"}


def test_a_forgotten_stage_starts_afresh_with_the_same_key(tmp_path: Path) -> None:
    workspace = _finished(tmp_path)
    (workspace.folder / "model").mkdir()
    forget(workspace.folder)
    workspace.begin("key")
    assert [path.name for path in workspace.folder.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("plan", ["", "{}", "[]", "null", '{"key": 3}', "[" * 100_000, "\xe9"])
def test_a_damaged_plan_is_that_of_another_work(tmp_path: Path, plan: str) -> None:
    workspace = _workspace(tmp_path)
    workspace.batches([("a", ["one"])], Prompt, lambda items: [_prompt(items[0])], "prompts", int)
    (workspace.folder / "plan.json").write_text(plan, encoding="latin-1")
    workspace.begin("key")
    assert workspace.journal.batches == {}
    assert json.loads((workspace.folder / "plan.json").read_text())["key"] == "key"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"name": "b", "rows": 3, "seconds": 0.1, "tokens": 1}',
        '{"name": "b", "rows": [1], "seconds": 0.1, "tokens": 1}',
        '{"name": "b", "rows": [], "seconds": "x", "tokens": 1}',
        "[" * 100_000,
    ],
)
def test_a_damaged_line_of_the_journal_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "working.jsonl"
    Journal(path).append(Batch("a", [], 0.1, 1))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"working\.jsonl:2: this line is damaged\. Remove the folder"):
        Journal(path)


def test_a_damaged_row_of_the_journal_is_named(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    workspace.journal.append(Batch("a", [{"no": "prompt"}], 0.1, 1))
    with pytest.raises(RunError, match=r"working\.jsonl: a row in it is damaged\. Remove the folder"):
        list(workspace.batches([("a", ["one"])], Prompt, lambda items: [], "prompts", int))


def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("solon.store.fcntl.flock", unsupported)
    with pytest.raises(UsageError, match=r"cannot lock files \(No locks available\)"), locked(tmp_path):
        pass
