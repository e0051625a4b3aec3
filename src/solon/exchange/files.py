"""Reads a file of any of the formats, and tells by its content which one it is.

JSON is parsed strictly: a key that stands twice, NaN and endless nesting are faults.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solon.errors import Problem, ProblemsError, UsageError
from solon.exchange import huggingface, paper, statements
from solon.exchange.drafts import (
    CSV,
    FORMATS,
    HUGGINGFACE,
    PAPER_COMPARISONS,
    PAPER_REVISIONS,
    Format,
    Reading,
)
from solon.rowfiles import printable
from solon.yamlfile import read_text

_MOST_BYTES = 64 << 20  # no constitution is larger, and a parsed file takes many times its size
_MEND = "Check the commas, quotes and brackets there."
_READERS: dict[Format, Callable[[object, str], Reading]] = {
    PAPER_REVISIONS: paper.revisions,
    PAPER_COMPARISONS: paper.comparisons,
    HUGGINGFACE: huggingface.read,
}


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        UsageError: there is none; the message names all of them.
    """
    for one in FORMATS:
        if name == one:
            return one
    raise UsageError(f"there is no format `{printable(name)}`. Use one of {', '.join(FORMATS)}.")


def read(path: Path, format_: Format | None) -> Reading:
    """What the file holds; faults of single entries stand in the reading.

    Raises:
        UsageError: the file cannot be opened.
        ProblemsError: it is malformed as a whole, or its format is not recognised.
    """
    _refuse_huge(path)
    if format_ == CSV or (format_ is None and statements.is_csv(path)):
        reading = statements.read(path)
    else:
        text, file = read_text(path), str(path)
        if format_ is None and text.lstrip()[:1] not in ("{", "["):
            raise ProblemsError([_unknown(file)])
        data = _json(text, file)
        found = format_ or _recognised(data)
        if found is None:
            raise ProblemsError([_unknown(file)])
        reading = _READERS[found](data, file)
    if not reading.drafts and not reading.problems:
        raise ProblemsError([Problem(str(path), None, "the file holds no principles", "Add some.")])
    return reading


def _refuse_huge(path: Path) -> None:
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        most = f"{_MOST_BYTES >> 20} MiB"
        raise UsageError(f"{path}: more than {most}, and no constitution. Give another file.")


def _unknown(file: str) -> Problem:
    fix = f"Name it with --format, one of {', '.join(FORMATS)}; docs/exchange.md shows each."
    return Problem(file, None, "its format is not recognised", fix)


def _recognised(data: object) -> Format | None:
    """The format whose mark some entry bears, so that a faulty file is still known for what it is."""
    values = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list) else []
    if isinstance(data, dict):
        if isinstance(data.get("constitutions"), list):
            return HUGGINGFACE
        marked = any(isinstance(v, dict) and v.keys() & {"prompt", "edit_request"} for v in values)
        return PAPER_REVISIONS if marked else None
    if any(isinstance(v, dict) and v.keys() & {"critic", "revision"} for v in values):
        return HUGGINGFACE
    asks = any(isinstance(v, str) and paper.OPTIONS.search(v.rstrip()) for v in values)
    return PAPER_COMPARISONS if asks else None


def _json(text: str, file: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "nested too deeply" if deep else str(getattr(error, "msg", error))
        what = f"malformed JSON ({reason})"
        raise ProblemsError([Problem(file, getattr(error, "lineno", None), what, _MEND)]) from error


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{printable(key)}` stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
