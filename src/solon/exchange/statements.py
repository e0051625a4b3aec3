"""Statements in a CSV file, one a row, with the columns that Solon itself writes as optional ones.

A row gives a statement, from which the three wordings are derived, or the wordings themselves, or some of
them and a statement for the others. Names of columns are read without regard to case.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from solon.constitution import AskedOn, Principle, Purpose
from solon.errors import Problem, UsageError
from solon.exchange.drafts import CSV, Draft, Reading, Spot, left_out, wording
from solon.rowfiles import FileRow, printable, read_table

STATEMENT = ("statement", "principle", "text", "rule")
COLUMNS = tuple(Principle.model_fields)
_WORDINGS = ("critique", "revision", "question")


def is_csv(path: Path) -> bool:
    """Whether the file's name says that it is a CSV file."""
    return path.name.lower().endswith((".csv", ".csv.gz"))


def read(path: Path) -> Reading:
    """The statements of `path`.

    Raises:
        UsageError: its name does not end in `.csv` or `.csv.gz`, or it cannot be opened.
    """
    file = str(path)
    if not is_csv(path):
        raise UsageError(f"{file}: the name of a CSV file ends in .csv or .csv.gz. Rename it.")
    table = read_table(path, ())
    problems = list(table.problems)
    columns, others = _columns(table.columns, Spot(file), problems)
    drafts: tuple[Draft, ...] = ()
    if columns:
        drafts = tuple(_draft(row, columns, file, problems) for row in table.rows)
    notes = [*_header_note(table.columns, file), *left_out(others, file, "columns"), *_unused(drafts, file)]
    problems.sort(key=lambda problem: problem.line or 0)
    return Reading(file, CSV, drafts, (), tuple(notes), tuple(problems))


def _columns(names: list[str], spot: Spot, problems: list[Problem]) -> tuple[dict[str, str], list[str]]:
    """{what it holds: the column's own name}, and the columns that hold nothing known."""
    found: dict[str, str] = {}
    others: list[str] = []
    for name in names:
        what = _held(name, alone=len(names) == 1)
        if what is None:
            others.append(name)
        elif found.setdefault(what, name) != name:
            fix = f"Rename one; a statement's column is named {', '.join(STATEMENT)}."
            both = f"the columns `{found[what]}` and `{name}` both hold the {what}"
            problems.append(spot.problem(both, fix))
    if names and "statement" not in found and not found.keys() >= set(_WORDINGS):
        shown = ", ".join(f"`{printable(name)}`" for name in names[:20])
        fix = f"Name one of them {', '.join(STATEMENT)}, and divide columns by commas."
        problems.append(spot.problem(f"none of the columns {shown} holds the statements", fix))
        return {}, []
    return found, others


def _held(name: str, alone: bool) -> str | None:
    """What a column holds: the statements, if it stands alone, unless its name or its signs say otherwise."""
    lower = name.lower()
    if lower in STATEMENT:
        return "statement"
    if lower in COLUMNS:
        return lower
    divided = {part.strip() for part in re.split(r"[;\t]", lower)} & {*STATEMENT, *COLUMNS}
    return "statement" if alone and not divided else None


def _header_note(names: list[str], file: str) -> list[str]:
    """A single column may have any name, and so may be a statement that was meant as one."""
    if len(names) != 1 or names[0].lower() in STATEMENT:
        return []
    return [f"{file}: the first line, `{printable(names[0])}`, was read as the column's name."]


def _draft(row: FileRow, columns: dict[str, str], file: str, problems: list[Problem]) -> Draft:
    spot = Spot(file, line=row.line)
    cells = {what: row.value[name] for what, name in columns.items() if row.value[name].strip()}
    texts = {
        what: wording(cells[what], spot.at(columns[what]), problems)
        for what in ("id", "about", "statement", *_WORDINGS)
        if what in cells
    }
    lacking = [name for name in _WORDINGS if name not in cells]
    if lacking and "statement" not in cells:
        what = "the row is empty" if not cells else f"the row has no statement and no {lacking[0]}"
        problems.append(spot.problem(what, "Write a statement or all three wordings, or delete the row."))
    weight = _weight(cells.get("weight"), spot, problems)
    purpose = _one_of(get_args(Purpose), "purpose", cells.get("purpose"), spot, problems)
    where = _one_of(get_args(AskedOn), "asked_on", cells.get("asked_on"), spot, problems)
    key = texts.pop("id", None)
    return Draft(spot, key, weight=weight, purpose=purpose, asked_on=where or "any", **texts)


def _weight(cell: str | None, spot: Spot, problems: list[Problem]) -> float:
    try:
        weight = 1.0 if cell is None else float(cell)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        what = f"is `{printable(cell or '')}`, not a number above 0"
        problems.append(spot.at("weight").problem(what, "Write it like 1.5, or leave it empty."))
    return weight


def _one_of(
    allowed: Sequence[str], column: str, cell: str | None, spot: Spot, problems: list[Problem]
) -> Any:
    """Which of these words a cell says; None if it is empty."""
    if cell is None or cell.strip().lower() in allowed:
        return cell and cell.strip().lower()
    fix = f"Write {', '.join(allowed[:-1])} or {allowed[-1]}, or leave it empty."
    problems.append(spot.at(column).problem(f"is `{printable(cell)}`", fix))
    return None


def _unused(drafts: tuple[Draft, ...], file: str) -> list[str]:
    count = sum(bool(d.statement and d.critique and d.revision and d.question) for d in drafts)
    if not count:
        return []
    return [f"{file}: left out {count} statements, because their rows give all three wordings."]
