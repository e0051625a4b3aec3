"""Pairs of answers with a known better one, from public formats, to measure judges by.

Three formats are told apart record by record: a prompt with a chosen and a rejected answer (TRL), two whole
transcripts (HH), and a question with two lettered options (HHH). Texts are strangers' data: kept as they
stand but for white space around them, and split only at the format's own markers. A record that can be no
pair is left out and counted by its reason; one that breaks its format is reported with its line.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from solon.engines.base import Conversation
from solon.errors import Problem, ProblemsError, UsageError
from solon.feedback.pair_formats import EMPTY, FORMATS, KEYS, FormatError, parts
from solon.rowfiles import FileRow, Table, printable, read_table

EQUAL = "the two answers are equal"
NO_QUESTION = "the last question is empty"
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class KnownPair:
    """A conversation that ends in a user's turn, the answer known to be better, and the worse one.

    `source` is the file's name and the line of the record.
    """

    conversation: Conversation
    chosen: str
    rejected: str
    source: str

    @property
    def prompt(self) -> str:
        """What the user said last, which both texts answer."""
        return self.conversation[-1].content

    @property
    def history(self) -> Conversation:
        """The turns before the prompt."""
        return self.conversation[:-1]


def read_pairs(path: Path, limit: int | None = None) -> tuple[list[KnownPair], dict[str, int]]:
    """The first `limit` pairs of a file (all by default), and how many records were left out, by reason.

    Records behind the last pair that `limit` asks for are neither checked nor counted. A record with
    `corrects` is read as HHH's, another with `prompt` as TRL's, else `chosen` and `rejected` are transcripts.

    Raises:
        UsageError: the file cannot be opened, holds no records, or its format is unknown.
        ProblemsError: what is wrong in the file, each fault with its line and how to mend it.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} pairs leaves nothing to measure. Give 1 or more.")
    table, file = read_table(path, KEYS), str(path)
    _refuse_empty(table, file)
    pairs: list[KnownPair] = []
    problems = list(table.problems)
    left_out: Counter[str] = Counter()
    for row in table.rows:
        if len(pairs) == limit:
            break
        found = _read(row, file)
        if isinstance(found, KnownPair):
            pairs.append(found)
        elif isinstance(found, Problem):
            problems.append(found)
        else:
            left_out[found] += 1
    if problems:
        raise ProblemsError(_first(problems, file))
    return pairs, dict(left_out)


def _refuse_empty(table: Table, file: str) -> None:
    if table.rows or table.problems:
        return
    if table.columns and not set(table.columns) & set(KEYS):
        shown = ", ".join(f"`{printable(column)}`" for column in table.columns[:20])
        raise UsageError(f"{file}: no pairs in its columns {shown}. {FORMATS}")
    raise UsageError(f"{file}: the file holds no records. Add some, or give another file.")


def _first(problems: list[Problem], file: str) -> list[Problem]:
    """The first problems by line, and how many more there are: a wrong file has one a record."""
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    more = len(ordered) - _MOST_PROBLEMS
    if more <= 0:
        return ordered
    last = Problem(file, None, f"and {more} more", "Mend these first; the same fix may help them all.")
    return [*ordered[:_MOST_PROBLEMS], last]


def _read(row: FileRow, file: str) -> KnownPair | Problem | str:
    """The row's pair, its fault, or the reason to leave it out."""
    try:
        found = parts(row.value)
    except FormatError as error:
        return Problem(file, row.line, error.what, error.fix)
    if isinstance(found, str):
        return found
    conversation, chosen, rejected = found
    if not conversation[-1].content:
        return NO_QUESTION
    if not chosen or not rejected:
        return EMPTY
    return (
        EQUAL
        if chosen == rejected
        else KnownPair(conversation, chosen, rejected, f"{Path(file).name}:{row.line}")
    )
