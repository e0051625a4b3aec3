"""What a file of another format says, before anything is derived: drafts of principles, with their places.

Texts are strangers' data. They lose the white space around them, as every text of a constitution does, and
the character U+0085 becomes a line break, because YAML reads it as one; nothing else is changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from solon.constitution import AskedOn, Purpose, Text
from solon.errors import Problem
from solon.rowfiles import printable

Format = Literal["paper-revisions", "paper-comparisons", "huggingface", "csv"]
PAPER_REVISIONS: Format = "paper-revisions"
PAPER_COMPARISONS: Format = "paper-comparisons"
HUGGINGFACE: Format = "huggingface"
CSV: Format = "csv"
FORMATS: tuple[Format, ...] = (PAPER_REVISIONS, PAPER_COMPARISONS, HUGGINGFACE, CSV)

MOST_CHARACTERS = 20_000  # of a text, as in a constitution
_MOST_SHOWN = 10
_TEXT: TypeAdapter[str] = TypeAdapter(Text)
_FAULTS = {
    "string_too_short": ("is empty", "Write its text, or delete the entry."),
    "string_too_long": (f"has more than {MOST_CHARACTERS:,} characters", "Shorten it."),
    "string_unicode": ("is no text", "It holds half of a surrogate pair; type it again."),
}


@dataclass(frozen=True)
class Spot:
    """A place in a file: a line (CSV), or the path of a key (JSON), or the whole file."""

    file: str
    key: str = ""
    line: int | None = None

    def at(self, key: str | int) -> "Spot":
        """The place of a key, or of an item of a list, within this one."""
        if isinstance(key, int):
            return Spot(self.file, f"{self.key}[{key}]", self.line)
        dot = "." if self.key else ""
        return Spot(self.file, f"{self.key}{dot}{printable(key)}", self.line)

    def problem(self, what: str, fix: str) -> Problem:
        return Problem(self.file, self.line, f"`{self.key}` {what}" if self.key else what, fix)

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place} `{self.key}`" if self.key else place


@dataclass(frozen=True)
class Draft:
    """A principle as far as its file gives it; `None` is to be derived. `key` is what the id is made of."""

    spot: Spot
    key: str | None = None
    about: str | None = None
    statement: str | None = None
    critique: str | None = None
    revision: str | None = None
    question: str | None = None
    weight: float = 1.0
    purpose: Purpose | None = None
    asked_on: AskedOn = "any"


@dataclass(frozen=True)
class Worked:
    """A worked revision, and the two requests that say which principle it is for."""

    prompt: str
    answer: str
    critic: str
    critique: str
    reviser: str
    revision: str


@dataclass(frozen=True)
class Reading:
    """All that a file gives: drafts in its order, worked revisions, what was left out, what is wrong."""

    file: str
    format: Format
    drafts: tuple[Draft, ...]
    worked: tuple[Worked, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def wording(value: object, spot: Spot, problems: list[Problem]) -> str:
    """The text as a constitution keeps it. A fault is added to `problems`, and the text is empty."""
    if not isinstance(value, str):
        problems.append(spot.problem(f"is {kind(value)}, not a string", 'Write it as a string: "…".'))
        return ""
    try:
        return _TEXT.validate_python(value.replace("\x85", "\n"))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        problems.append(spot.problem(*_FAULTS[fault["type"]]))
        return ""


def kind(value: object) -> str:
    """What JSON calls a value of this type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def listed(names: Iterable[object], count: int) -> str:
    """The first of `count` names, with commas, and how many more there are."""
    shown = ", ".join(str(name) for name in islice(names, _MOST_SHOWN))
    return shown if count <= _MOST_SHOWN else f"{shown} and {count - _MOST_SHOWN} more"


def left_out(keys: list[str], file: str, kind_: str) -> list[str]:
    """A note on keys or columns that no principle has a place for."""
    if not keys:
        return []
    unique = [f"`{printable(key)}`" for key in dict.fromkeys(keys)]
    return [f"{file}: left out the {kind_} {listed(unique, len(unique))}, for which there is no place."]
