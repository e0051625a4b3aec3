"""Which words a revision changed: a pure function of two texts, for the reader's eye."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Change = Literal["same", "deleted", "inserted"]

_WORD = re.compile(r"\s+|\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A stretch of text that was kept, deleted or inserted."""

    change: Change
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """The pieces that lead from `before` to `after`, compared word by word.

    The kept and deleted pieces joined are `before`; the kept and inserted ones joined are `after`.
    Single words that survive by chance between two changes are shown as changed too: a patchwork of
    lone words is harder to read than two whole phrases.
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    pieces: list[Piece] = []
    deleted, inserted = "", ""
    for tag, i, j, k, m in _operations(old, new):
        if tag == "equal":
            pieces += _changed(deleted, inserted)
            pieces.append(Piece("same", "".join(old[i:j])))
            deleted, inserted = "", ""
        else:
            deleted += "".join(old[i:j])
            inserted += "".join(new[k:m])
    return [*pieces, *_changed(deleted, inserted)]


def _changed(deleted: str, inserted: str) -> list[Piece]:
    both: list[tuple[Change, str]] = [("deleted", deleted), ("inserted", inserted)]
    return [Piece(change, text) for change, text in both if text]


def _operations(old: list[str], new: list[str]) -> list[tuple[str, int, int, int, int]]:
    """difflib's operations, with a lone word between two changes counted as replaced."""
    found = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    last = len(found) - 1
    return [
        ("replace" if tag == "equal" and 0 < at < last and _few_words(old[i:j]) else tag, i, j, k, m)
        for at, (tag, i, j, k, m) in enumerate(found)
    ]


def _few_words(tokens: list[str]) -> bool:
    return sum(not token.isspace() for token in tokens) <= 1
