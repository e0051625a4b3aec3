"""What can go wrong at a boundary, in words that name the thing, the place and the fix.

The command line prints the message alone and exits with `exit_code`; `--debug` shows the traceback.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class SolonError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 1


class UsageError(SolonError):
    """The user asked for something that cannot be: a bad file, key, name or flag. Nothing was run."""

    exit_code = 2


class RunError(SolonError):
    """A run had to stop. What it finished before stays on disk and is reused by the same command."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One fault in a file: where it stands, what it is, and how to mend it, if `what` does not say it."""

    file: str
    line: int | None
    what: str
    fix: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.what}. {self.fix}".rstrip()


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """The fix for a name that is not known: the one that is most like it, else `otherwise`."""
    close = get_close_matches(name, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else otherwise


class ProblemsError(UsageError):
    """A file with one or more faults, all reported at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{count} found:", *(f"  {problem}" for problem in problems)]))


class LogprobsUnavailableError(RunError):
    """An engine cannot give log-probabilities of texts, so a judge that stands on them cannot work."""
