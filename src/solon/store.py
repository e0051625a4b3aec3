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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from solon.digest import digest, file_sha256, folder_digest
from solon.errors import RunError, UsageError
from solon.progress import Reporter
from solon.records import Row, arrow_schema
from solon.tables import Rows, as_table

R = TypeVar("R", bound=Row)
Item = TypeVar("Item")
_LOCK = ".lock"
_CHUNK = 256  # Rows that are frozen at once.


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


def _flush(path: Path) -> None:
    """Bring a file, or all files below a folder, to the disk, and with them their names."""
    inside = [*path.rglob("*")] if path.is_dir() else []
    for each in (*inside, path, path.parent):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_leftover(path: Path) -> bool:
    """Whether this is what a kill or a full disk may leave of a run folder's very first write."""
    return path.name == _LOCK or (path.name.startswith(".") and path.name.endswith(".partial"))


def write_rows(path: Path, row: type[R], rows: Iterable[R]) -> int:
    """Freeze rows to Parquet, atomically, a chunk at a time; how many there were."""
    count, waiting = 0, iter(rows)
    with _replacing(path) as temporary, pq.ParquetWriter(temporary, arrow_schema(row)) as writer:
        while chunk := list(islice(waiting, _CHUNK)):
            writer.write_table(as_table(chunk, row))
            count += len(chunk)
    return count


def read_rows(path: Path, row: type[R]) -> Rows[R]:
    """The frozen rows of a Parquet file.

    Raises:
        RunError: the file is absent or damaged, or its columns are not those of the row's type. A value that
            does not fit its type is told when its row is asked for.
    """
    try:
        return Rows(row, pq.read_table(path, schema=arrow_schema(row)), what=f"{path}: a row")
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


@dataclass(frozen=True)
class Entry:
    """Where a batch stands in the journal: its line's first byte and length, and what it says of its work."""

    start: int
    length: int
    rows: int
    seconds: float
    tokens: int


_BATCH = TypeAdapter(Batch)


@dataclass(frozen=True)
class StageResult:
    """What a stage returns: its rows, figures for the report, and the outputs other than rows.

    `outputs` are files or folders below the stage's own folder that later stages read; `tokens` are those
    that models have read and generated, or learnt from, and that no batch of the journal has counted.
    """

    rows: Iterable[Row]
    metrics: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    tokens: int = 0


class Journal:
    """`working.jsonl`: the batches that a stage has finished so far. Their rows stay on the disk."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises RunError if a whole line is damaged; a torn last one is cut off."""
        self._path = path
        self.batches: dict[str, Entry] = {}
        if path.exists():
            self._read()

    def append(self, batch: Batch) -> None:
        line = (json.dumps(batch.__dict__, ensure_ascii=False) + "\n").encode()
        with self._path.open("ab") as file:
            start = file.tell()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._note(batch, start, line)

    def rows(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of these batches, a batch in memory at a time."""
        entries = [self.batches[name] for name in names]
        for line in self._lines(entries):
            yield from json.loads(line)["rows"]

    def keep(self, names: Sequence[str]) -> None:
        """Forget all batches but these: what came after a training checkpoint is done again."""
        kept = [self.batches[name] for name in names if name in self.batches]
        write_atomically(self._path, b"".join(self._lines(kept)).decode())
        self.batches = {}
        self._read()

    def _lines(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        if not entries:
            return  # There may be no file yet
        with self._path.open("rb") as file:
            for entry in entries:
                file.seek(entry.start)
                yield file.read(entry.length)

    def _read(self) -> None:
        start = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                self._note(self._batch(line, number), start, line)
                start += len(line)
        # A kill may have torn the last line: cut it off, or the next append would be glued to it.
        os.truncate(self._path, start)

    def _note(self, batch: Batch, start: int, line: bytes) -> None:
        self.batches[batch.name] = Entry(start, len(line), len(batch.rows), batch.seconds, batch.tokens)

    def _batch(self, line: bytes, number: int) -> Batch:
        try:
            return _BATCH.validate_python(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{self._path}:{number}: this line", self._path.parent) from error


class Journalled(Generic[R]):
    """The rows of planned batches in the plan's order, read from the journal whenever they are walked."""

    def __init__(self, journal: Journal, names: Sequence[str], row: type[R], folder: Path) -> None:
        self._journal, self._names, self._row, self._folder = journal, names, row, folder

    def __len__(self) -> int:
        return sum(self._journal.batches[name].rows for name in self._names)

    def __iter__(self) -> Iterator[R]:
        try:
            for data in self._journal.rows(self._names):
                yield self._row.model_validate(data)
        except ValidationError as error:
            raise _damaged(f"{self._folder / 'working.jsonl'}: a row in it", self._folder) from error


class Workspace:
    """The folder of one stage while it works. `counted`: tokens that this attempt's batches took."""

    def __init__(self, stage: str, folder: Path, events: EventLog, reporter: Reporter) -> None:
        self.stage = stage
        self.folder = folder
        self.events = events
        self.reporter = reporter
        self.counted = 0
        self._started = time.monotonic()

    def begin(self, key: str) -> None:
        """Open the folder for the work that `key` names; leftovers of any other work are removed."""
        plan = self.folder / "plan.json"
        forget(self.folder)  # Finished for other inputs, or damaged since: its journal has gone
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
        work: Callable[[Sequence[Item]], list[R]],
        unit: str,
        used: Callable[[], int],
    ) -> Journalled[R]:
        """Do the planned batches that are not done yet; all rows, in the order of the plan.

        Rows reach the disk batch by batch, and only one batch lies in memory. `work` maps the items of one
        batch to its rows; `used` tells how many tokens models have read and generated so far.
        """
        total = sum(len(items) for _, items in plan)
        with self.reporter.task(self.stage, total, unit) as advance:
            for name, items in plan:
                if name not in self.journal.batches:
                    start, before = time.monotonic(), used()
                    rows = work(items)
                    seconds = round(time.monotonic() - start, 3)
                    tokens = used() - before
                    self.counted += tokens
                    self.record(name, rows, tokens, seconds)
                    self.events.write("batch", stage=self.stage, batch=name, rows=len(rows), seconds=seconds)
                advance(len(items))
        return Journalled(self.journal, [name for name, _ in plan], row, self.folder)

    def record(self, name: str, rows: Sequence[Row], tokens: int, seconds: float) -> None:
        """Add one finished batch to the journal."""
        self.journal.append(Batch(name, [r.model_dump(mode="json") for r in rows], seconds, tokens))

    def finish(self, key: str, row: type[Row], result: StageResult, earlier: float) -> Manifest:
        """Freeze the rows, then write the manifest: from here on the stage is done."""
        rows_file = self.folder / "rows.parquet"
        count = write_rows(rows_file, row, result.rows)
        outputs = [rows_file, *(self.folder / name for name in result.outputs)]
        for output in outputs:
            _flush(output)  # The journal, from which they could be made again, goes
        manifest = Manifest(
            stage=self.stage,
            key=key,
            output=outputs_digest(outputs),
            rows=count,
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


def forget(folder: Path) -> None:
    """Let what a finished stage made count for nothing: what begins in its folder starts afresh.

    A stage that is not finished keeps its plan and goes on. The plan goes first, so that a kill in between
    leaves no finished folder that looks like half a one.
    """
    if not (folder / "manifest.json").exists():
        return
    for name in ("plan.json", "manifest.json"):
        (folder / name).unlink(missing_ok=True)


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
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another process works here. Wait for it or use --run-dir."
            ) from error
        except OSError as error:
            raise UsageError(
                f"{folder}: its file system cannot lock files ({error.strerror}). Use --run-dir on another "
                "one, such as a local disk."
            ) from error
        yield
