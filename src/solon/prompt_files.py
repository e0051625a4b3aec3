"""Prompts from a file of any supported format, each with the line it came from.

A prompt's text is kept exactly, but for white space around it; it is never split, so a prompt that holds
": " or a blank line stays one prompt. Every fault of a file is reported at once.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from solon import shipped
from solon.errors import Problem, ProblemsError
from solon.recipe import Source
from solon.rowfiles import FileRow, Table, printable, read_table
from solon.text import half_a_character

_DEFAULT_CATEGORY = Source.model_fields["category"].default


@dataclass(frozen=True)
class RawPrompt:
    """A prompt as it stands in a file. In a Parquet file `line` is the number of the row, from 1."""

    text: str
    category: str
    file: str
    line: int


def read_prompts(source: Source, beside: Path | None, max_words: int) -> list[RawPrompt]:
    """All prompts of `source`, in the order of the file; `max_words` counts by white space.

    Raises:
        UsageError: there is no such file, it cannot be opened, or its format is unknown.
        ProblemsError: what is wrong in the file, every fault with its line and how to mend it.
    """
    path = shipped.find("prompts", source.file, ".jsonl", beside)
    table = read_table(path, (source.column, source.category))
    file = str(path)
    problems = [*table.problems, *_absent(table, source, file)]
    if _lacks(table, source.column):
        raise ProblemsError(problems)  # every single row would fail for the same reason
    prompts: list[RawPrompt] = []
    for row in table.rows:
        found = _prompt(row, source, file, max_words)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            prompts.append(found)
    if not prompts and not problems:
        problems.append(Problem(file, None, "the file holds no prompts", "Add some, or drop this source."))
    if problems:
        raise ProblemsError(sorted(problems, key=lambda problem: problem.line or 0))
    return prompts


def _lacks(table: Table, column: str) -> bool:
    """Whether the rows have columns, and not this one; a bare string needs none."""
    bare = any(isinstance(row.value, str) for row in table.rows)
    return bool(table.columns) and column not in table.columns and not bare


def _absent(table: Table, source: Source, file: str) -> list[Problem]:
    """The columns that the recipe names and no row has. A category may lack unless the recipe names it."""
    problems = []
    if _lacks(table, source.column):
        problems.append(Problem(file, None, *_no_column(source.column, table.columns, "column")))
    if source.category != _DEFAULT_CATEGORY and _lacks(table, source.category):
        problems.append(Problem(file, None, *_no_column(source.category, table.columns, "category")))
    return problems


def _no_column(name: str, columns: list[str], key: str) -> tuple[str, str]:
    shown = "no columns" if not columns else ", ".join(f"`{printable(column)}`" for column in columns[:20])
    close = get_close_matches(name, columns, n=1, cutoff=0.65)
    hint = f"Did you mean `{printable(close[0])}`? " if close else ""
    return (
        f"there is no column `{name}`; there are {shown}",
        f"{hint}Name it in the recipe as `{key}: …`.",
    )


def _prompt(row: FileRow, source: Source, file: str, max_words: int) -> RawPrompt | Problem:
    """The row's prompt, or the first thing that is wrong with it."""
    value, category = row.value, ""
    if isinstance(value, dict):
        if source.column not in value:
            return Problem(file, row.line, *_no_column(source.column, list(value), "column"))
        named = value.get(source.category)
        if named is not None and not isinstance(named, str | int | float):
            what = f"the category in `{source.category}` is a {type(named).__name__}, not a string"
            return Problem(file, row.line, what, "Write a single word or name.")
        category = "" if named is None else str(named).strip()
        value = value[source.column]
    fault = _fault(value, max_words) or (half_a_character(category) and ("the category is no text", _RETYPE))
    if fault:
        return Problem(file, row.line, *fault)
    return RawPrompt(value.strip(), category, file, row.line)


_RETYPE = "It holds half of a surrogate pair; type it again."


def _fault(value: Any, max_words: int) -> tuple[str, str] | None:
    if not isinstance(value, str):
        return f"the prompt is a {type(value).__name__}, not a string", 'Write it as a string: "…".'
    if not value.strip():
        return "the prompt is empty", "Write the prompt, or delete the row."
    if half_a_character(value):
        return "the prompt is no text", _RETYPE
    count = len(value.split())
    if count > max_words:
        return f"the prompt has {count} words, more than {max_words}", "Shorten it, or raise max_words."
    return None
