"""A run folder: append while working, freeze when done, the manifest last.

A stage plans its batches ahead. Each finished batch is one line of `working.jsonl`, flushed to the disk,
so a kill at any moment loses at most the batch in work; a torn last line is dropped. When the stage is
done its rows are frozen to `rows.parquet` and `manifest.json` is written last: a stage without a
manifest is unfinished, whatever else lies in its folder.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from solon.digest import digest, file_sha256, folder_digest
from solon.errors import RunError, UsageError
from solon.progress import Reporter
from solon.records import Row, arrow_schema

R = TypeVar("R", bound=Row)
Item = TypeVar("Item")
_LOCK = ".lock"


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once it is written, and vanishes on an error."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    with _replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def is_leftover(path: Path) -> bool:
    """Whether this is what a kill or a full disk may leave of a run folder's very first write."""
    return path.name == _LOCK or (path.name.startswith(".") and path.name.endswith(".partial"))


def write_rows(path: Path, row: type[R], rows: Sequence[R]) -> None:
    """Freeze rows to Parquet, atomically."""
    table = pa.Table.from_pylist([r.model_dump(mode="json") for r in rows], schema=arrow_schema(row))
    with _replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_rows(path: Path, row: type[R]) -> list[R]:
    """The frozen rows of a Parquet file.

    Raises:
        RunError: the file is absent or damaged.
    """
    try:
        return [row.model_validate(data) for data in pq.read_table(path).to_pylist()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}). Remove its folder and run again.") from error


class EventLog:
    """`events.jsonl`: one line for whatever is worth watching while a run works."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: str, **data: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **data}, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself. `output` is the digest that later stages depend on."""

    stage: str
    key: str
    output: str
    rows: int
    seconds: float
    tokens: int
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """A finished batch of the journal."""

    name: str
    rows: list[dict[str, Any]]
    seconds: float
    tokens: int


_BATCH = TypeAdapter(Batch)


@dataclass(frozen=True)
class StageResult:
    """What a stage returns: its rows, figures for the report, and the outputs other than rows.

    `outputs` are files or folders below the stage's own folder that later stages read; `tokens` are
    those that no batch of the journal has counted.
    """

    rows: Sequence[Row]
    metrics: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    tokens: int = 0


class Journal:
    """`working.jsonl`: the batches that a stage has finished so far."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises RunError if a whole line is damaged; a torn last one is cut off."""
        self._path = path
        self.batches = {batch.name: batch for batch in self._read()}

    def append(self, batch: Batch) -> None:
        line = json.dumps(batch.__dict__, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.batches[batch.name] = batch

    def keep(self, names: Sequence[str]) -> None:
        """Forget all batches but these: what came after a training checkpoint is done again."""
        self.batches = {name: self.batches[name] for name in names if name in self.batches}
        lines = [json.dumps(batch.__dict__, ensure_ascii=False) + "\n" for batch in self.batches.values()]
        write_atomically(self._path, "".join(lines))

    def _read(self) -> Iterator[Batch]:
        if not self._path.exists():
            return
        whole = self._path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            # A kill tore the last line: cut it off, or the next append would be glued to it.
            os.truncate(self._path, end)
        for number, line in enumerate(whole[:end].splitlines(), start=1):
            yield self._batch(line, number)

    def _batch(self, line: bytes, number: int) -> Batch:
        try:
            return _BATCH.validate_python(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{self._path}:{number}: this line", self._path.parent) from error


class Workspace:
    """The folder of one stage while it works."""

    def __init__(self, stage: str, folder: Path, events: EventLog, reporter: Reporter) -> None:
        self.stage = stage
        self.folder = folder
        self.events = events
        self.reporter = reporter
        self._started = time.monotonic()

    def begin(self, key: str) -> None:
        """Open the folder for the work that `key` names; leftovers of any other work are removed."""
        plan = self.folder / "plan.json"
        # First what makes the folder count, so that a kill in between leaves nothing that looks whole.
        (self.folder / "manifest.json").unlink(missing_ok=True)
        if self.folder.exists() and _planned_key(plan) != key:
            plan.unlink(missing_ok=True)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(plan, json.dumps({"stage": self.stage, "key": key}))
        self.journal = Journal(self.folder / "working.jsonl")

    def begun(self, key: str) -> bool:
        """Whether another process has opened the folder for the work that `key` names."""
        return _planned_key(self.folder / "plan.json") == key

    def batches(
        self,
        plan: Sequence[tuple[str, Sequence[Item]]],
        row: type[R],
        work: Callable[[Sequence[Item]], tuple[list[R], int]],
        unit: str,
    ) -> list[R]:
        """Do the planned batches that are not done yet; all rows, in the order of the plan.

        `work` maps the items of one batch to its rows and the number of tokens it took.
        """
        total = sum(len(items) for _, items in plan)
        with self.reporter.task(self.stage, total, unit) as advance:
            for name, items in plan:
                if name not in self.journal.batches:
                    rows, tokens, seconds = self._timed(work, items)
                    self.record(name, rows, tokens, seconds)
                    self.events.write("batch", stage=self.stage, batch=name, rows=len(rows), seconds=seconds)
                advance(len(items))
        try:
            return [row.model_validate(data) for name, _ in plan for data in self.journal.batches[name].rows]
        except ValidationError as error:
            raise _damaged(f"{self.folder / 'working.jsonl'}: a row in it", self.folder) from error

    def record(self, name: str, rows: Sequence[Row], tokens: int, seconds: float) -> None:
        """Add one finished batch to the journal."""
        self.journal.append(Batch(name, [r.model_dump(mode="json") for r in rows], seconds, tokens))

    @staticmethod
    def _timed(
        work: Callable[[Sequence[Item]], tuple[list[R], int]], items: Sequence[Item]
    ) -> tuple[list[R], int, float]:
        start = time.monotonic()
        rows, tokens = work(items)
        return rows, tokens, round(time.monotonic() - start, 3)

    def finish(self, key: str, row: type[Row], result: StageResult, earlier: float) -> Manifest:
        """Freeze the rows, then write the manifest: from here on the stage is done."""
        rows_file = self.folder / "rows.parquet"
        write_rows(rows_file, row, list(result.rows))
        outputs = [rows_file, *(self.folder / name for name in result.outputs)]
        manifest = Manifest(
            stage=self.stage,
            key=key,
            output=outputs_digest(outputs),
            rows=len(result.rows),
            seconds=round(earlier + time.monotonic() - self._started, 2),
            tokens=result.tokens + sum(batch.tokens for batch in self.journal.batches.values()),
            metrics=result.metrics,
        )
        write_atomically(self.folder / "manifest.json", json.dumps(manifest.__dict__, indent=1))
        (self.folder / "working.jsonl").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        return manifest

    def earlier_seconds(self) -> float:
        """Time that earlier, interrupted attempts put into the batches that are kept."""
        return sum(batch.seconds for batch in self.journal.batches.values())


def _damaged(what: str, folder: Path) -> RunError:
    fix = f"Remove the folder {folder} and run again; this stage then starts from its beginning."
    return RunError(f"{what} is damaged. {fix}")


def _planned_key(plan: Path) -> str | None:
    """The key of the work that a folder was opened for; None if its plan is absent or damaged."""
    try:
        found = json.loads(plan.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found.get("key") if isinstance(found, dict) else None


def outputs_digest(paths: Sequence[Path]) -> str:
    """One digest of files and folders, by content."""
    return digest([folder_digest(p) if p.is_dir() else file_sha256(p) for p in paths])


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None if the stage is not finished, or its rows are gone."""
    path = folder / "manifest.json"
    if not path.exists() or not (folder / "rows.parquet").exists():
        return None
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}). Remove the folder {folder} and run again.") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that two processes never write to the same one.

    The lock belongs to the process: it vanishes with it, however it dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder}: another process works here. Wait for it or use --run-dir."
            ) from error
        yield
