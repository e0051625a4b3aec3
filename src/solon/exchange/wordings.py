"""Makes whole principles of drafts: the wordings that lack, what tells them apart, and their ids.

What lacks is derived from what is given, by the texts in `data/templates`. A constitution refuses a wording
that stands twice. So a draft whose wordings all stand already is dropped, and of another one the repeated
wordings are extended by one that is its own.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from solon.errors import Problem
from solon.exchange.drafts import MOST_CHARACTERS, Draft, Spot
from solon.templates import fill

FIELDS = ("critique", "revision", "question")
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MOST_WORDS, _MOST_OF_ABOUT, _MOST_OF_ID = 6, 60, 64


@dataclass(frozen=True)
class Whole:
    """A draft with an id and all wordings; `derived` and `extended` say which fields of them are so."""

    draft: Draft
    id: str
    about: str
    wordings: Mapping[str, str]
    derived: tuple[str, ...]
    extended: tuple[str, ...] = ()

    def problems(self) -> list[Problem]:
        """The wordings that have grown too long."""
        fix = "Shorten the text that it is derived from."
        what = f"is too long once it is filled in, with more than {MOST_CHARACTERS:,} characters"
        long = [field for field in FIELDS if len(self.wordings[field]) > MOST_CHARACTERS]
        return [self.draft.spot.at(field).problem(what, fix) for field in long]


def complete(drafts: Sequence[Draft]) -> tuple[list[Whole], list[Spot]]:
    """The drafts as whole principles in their order, no two alike; and the places of those dropped.

    Every draft has a statement, a question, or a critique and a revision.
    """
    kept: list[Whole] = []
    dropped: list[Spot] = []
    seen: set[tuple[str, str]] = set()
    ids = _Ids()
    for draft in drafts:
        whole = _distinct(_filled(draft), seen)
        if whole is None:
            dropped.append(draft.spot)
            continue
        seen |= {(field, text) for field, text in whole.wordings.items()}
        kept.append(replace(whole, id=ids.take(draft.key or whole.about)))
    return kept, dropped


def _filled(draft: Draft) -> Whole:
    given = {field: text for field in FIELDS if (text := getattr(draft, field))}
    wordings = {field: given.get(field) or _derived(draft, field) for field in FIELDS}
    source = draft.statement or draft.critique or draft.question or ""
    derived = tuple(field for field in FIELDS if field not in given)
    return Whole(draft, "", draft.about or _beginning(source), wordings, derived)


def _derived(draft: Draft, field: str) -> str:
    for source in ("statement", "question", "critique"):
        text = getattr(draft, source)
        if text and source != field:
            return fill(f"{source}_{field}", **{source: text})
    raise AssertionError(f"{draft.spot}: the reader let a draft through that gives nothing for its {field}")


def _distinct(whole: Whole, seen: set[tuple[str, str]]) -> Whole | None:
    """The principle with no wording that stands already; None if all of them do."""
    repeated = [field for field in FIELDS if (field, whole.wordings[field]) in seen]
    own = [field for field in FIELDS if field not in repeated]
    if not own:
        return None
    other = whole.wordings[own[0]]
    longer = {f: fill("keep_in_mind", wording=whole.wordings[f], other=other) for f in repeated}
    if any((field, text) in seen for field, text in longer.items()):
        return None
    return replace(whole, wordings={**whole.wordings, **longer}, extended=tuple(repeated))


def _beginning(text: str) -> str:
    """The first few words, on one line."""
    words = text.split()
    short = " ".join(words[:_MOST_WORDS])[:_MOST_OF_ABOUT].strip()
    cut = len(words) > _MOST_WORDS or len(" ".join(words)) > _MOST_OF_ABOUT
    return (short + "…" if cut else short) or text[:_MOST_OF_ABOUT]


class _Ids:
    """Gives out ids, no one twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._asked: Counter[str] = Counter()

    def take(self, text: str) -> str:
        """The text if it is an id, else one made of its letters; with a number behind it if it is taken."""
        wanted = slug(text) or "principle"
        found = wanted
        while found in self._taken:
            self._asked[wanted] += 1
            tail = f"-{self._asked[wanted] + 1}"
            found = wanted[: _MOST_OF_ID - len(tail)] + tail
        self._taken.add(found)
        return found


def slug(text: str) -> str:
    """An id as it is; of another text its Latin letters and digits, joined by `-`; empty if it has none."""
    if _ID.fullmatch(text):
        return text
    plain = unicodedata.normalize("NFKD", text[:_MOST_OF_ID]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:_MOST_OF_ID].strip("-_")
