"""Reads rows from JSONL, JSON, CSV, Parquet and plain text files, each optionally gzipped.

Nothing is skipped and nothing guessed: what cannot be read becomes a `Problem` with its line, and reading
goes on, so that one pass finds every fault. Only "\\n" ends a line; a row's text is kept as it stands.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.errors import Problem, UsageError

_MOST_BYTES = 1 << 30  # a gzip bomb must not fill the memory


@dataclass(frozen=True)
class FileRow:
    """One row: a bare text or a mapping, and the line it starts on (Parquet: its number from 1)."""

    line: int
    value: Any


@dataclass(frozen=True)
class Table:
    """The rows of a file, the names of all its columns, and what could not be read."""

    rows: list[FileRow]
    columns: list[str]
    problems: list[Problem]


def read_table(path: Path, wanted: tuple[str, ...]) -> Table:
    """The rows of `path`, by its suffix. Of a Parquet file only the `wanted` columns are read.

    Raises:
        UsageError: the file cannot be opened, or its suffix names no known format.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if zipped else suffixes)[-1:] or [""]
    if suffix[0] == ".parquet":
        return _parquet(_bytes(path, zipped), str(path), wanted)
    reader = _READERS.get(suffix[0])
    if reader is None:
        known = ", ".join([*_READERS, ".parquet"])
        raise UsageError(f"{path}: this format is unknown. Use one of {known}, each optionally with .gz.")
    text, problems = _decode(_bytes(path, zipped), str(path))
    table = reader(text, str(path))
    return Table(table.rows, table.columns, problems + table.problems)


def printable(text: str) -> str:
    """The beginning of a text from a file, safe to print: no control characters, no half surrogates."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text[:80])
    return shown + ("…" if len(text) > 80 else "")


def _bytes(path: Path, zipped: bool) -> bytes:
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: this is no whole gzip file. Pack it again, or drop the .gz.") from error
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UsageError(f"{path}: {reason}. Check the path and its permissions.") from error
    if len(raw) > _MOST_BYTES:
        raise UsageError(f"{path}: more than 1 GiB of data. Split the file into several.")
    return raw


def _decode(raw: bytes, file: str) -> tuple[str, list[Problem]]:
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8"), []
    except UnicodeDecodeError:
        bad = [line for line, part in enumerate(raw.split(b"\n"), 1) if not _is_utf8(part)]
    problems = [Problem(file, line, "this is not UTF-8 text", "Save the file as UTF-8.") for line in bad]
    return raw.decode("utf-8", errors="replace"), problems


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _text(text: str, file: str) -> Table:
    lines = enumerate(text.split("\n"), 1)
    return Table([FileRow(line, part) for line, part in lines if part.strip()], [], [])


def _jsonl(text: str, file: str) -> Table:
    rows: list[FileRow] = []
    problems: list[Problem] = []
    for line, part in enumerate(text.split("\n"), 1):
        if part.strip():
            try:
                rows.append(FileRow(line, _parse(part)))
            except (ValueError, RecursionError) as error:
                fix = "Write one JSON value a line."
                problems.append(Problem(file, line, f"malformed JSON ({_reason(error)})", fix))
    return Table(rows, _columns(rows), problems)


def _json(text: str, file: str) -> Table:
    try:
        values = _parse(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        fix = "Write a JSON list of strings or of objects."
        return Table([], [], [Problem(file, line, f"malformed JSON ({_reason(error)})", fix)])
    if not isinstance(values, list):
        fix = "Put the rows in brackets: [ …, … ]."
        return Table([], [], [Problem(file, 1, "the file holds no JSON list", fix)])
    rows = [FileRow(line, value) for line, value in zip(_item_lines(text), values, strict=True)]
    return Table(rows, _columns(rows), [])


def _item_lines(text: str) -> list[int]:
    """The line on which each item of a valid JSON list starts. The parser itself forgets it."""
    decoder = json.JSONDecoder()
    lines: list[int] = []
    at, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    while True:
        start = at
        while text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", start, at)
        if text[at] == "]":
            return lines
        lines.append(line)
        _, end = decoder.raw_decode(text, at)
        line += text.count("\n", at, end)
        at = end


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_no_repeats)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a repeated key win in silence; a prompt set that has one is broken."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key `{printable(twice)}` stands twice")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "msg", error))


def _columns(rows: list[FileRow]) -> list[str]:
    return list(dict.fromkeys(key for row in rows if isinstance(row.value, dict) for key in row.value))


def _csv(text: str, file: str) -> Table:
    rows: list[FileRow] = []
    problems: list[Problem] = []
    header: list[str] = []
    for line, cells in _csv_rows(text):
        if isinstance(cells, csv.Error):
            fix = 'Put texts with commas or quotes in "…" and double the quotes inside.'
            problems.append(Problem(file, line, f"malformed CSV ({cells})", fix))
        elif not header:
            header = [cell.strip() for cell in cells]
            problems += _repeated(header, file, line)
        elif len(cells) != len(header):
            what = f"the row has {len(cells)} values and the header names {len(header)} columns"
            problems.append(Problem(file, line, what, "Check the commas and quotes of this row."))
        else:
            rows.append(FileRow(line, dict(zip(header, cells, strict=True))))
    return Table(rows, header, problems)


def _csv_rows(text: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The rows that are not blank, with the line each starts on; ends at the first malformed one."""
    skipped = 0
    while text.startswith(("#", "\n", "\r\n")):
        text = text.partition("\n")[2]
        skipped += 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = skipped + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, error  # where the next row starts is no longer known
            return
        if cells is None:
            return
        if cells:
            yield line, cells


def _repeated(names: list[str], file: str, line: int | None) -> list[Problem]:
    twice = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
    return [
        Problem(file, line, f"the column `{printable(name)}` stands twice", "Rename one.") for name in twice
    ]


def _parquet(raw: bytes, file: str, wanted: tuple[str, ...]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(raw))
        names = [str(name) for name in table.column_names]
        present = [name for name in dict.fromkeys(wanted) if names.count(name) == 1]
        columns = [table.column(names.index(name)).to_pylist() for name in present]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        what = f"this is no readable Parquet file ({printable(str(error))})"
        return Table([], [], [Problem(file, None, what, "Write it again, or give another format.")])
    if not present:
        return Table([], names, _repeated(names, file, None))
    rows = [
        FileRow(i, dict(zip(present, values, strict=True)))
        for i, values in enumerate(zip(*columns, strict=True), 1)
    ]
    return Table(rows, names, _repeated(names, file, None))


_READERS: dict[str, Callable[[str, str], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _text,
}
