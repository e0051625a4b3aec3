"""What the user is told of an import: nothing is left out, derived or changed without a note."""

from collections import Counter
from collections.abc import Sequence

from solon.constitution import Constitution
from solon.exchange.drafts import Spot, listed
from solon.exchange.wordings import FIELDS, Whole
from solon.rowfiles import printable

NO_COMPARISONS = (
    "no format holds worked comparisons, which teach and test the judge. "
    "Write some before a run (docs/constitution.md)."
)


def on_principles(wholes: Sequence[Whole], dropped: Sequence[Spot]) -> list[str]:
    """Principles that were dropped, wordings that were derived or extended, ids that were rewritten."""
    notes = []
    if dropped:
        notes.append(f"dropped what stands already, word for word: {listed(dropped, len(dropped))}.")
    derived = Counter(field for whole in wholes for field in whole.derived)
    if derived:
        counts = ", ".join(f"{_count(derived[field], field)}" for field in FIELDS if derived[field])
        notes.append(f"derived from what the files give: {counts}. Read them before a run.")
    extended = [f"the {field} of `{whole.id}`" for whole in wholes for field in whole.extended]
    if extended:
        notes.append(
            f"extended, as an earlier principle has the same wording: {listed(extended, len(extended))}."
        )
    renamed = [w for w in wholes if w.draft.key is not None and w.draft.key != w.id]
    if renamed:
        ids = [f"`{printable(w.draft.key or '')}` is now `{w.id}`" for w in renamed]
        notes.append(f"rewrote ids: {listed(ids, len(ids))}.")
    return notes


def on_worked(found: Constitution, strays: int) -> list[str]:
    """Worked revisions that are no principle's, or of one that a run will not show."""
    notes = []
    if strays:
        count = _count(strays, "worked revision")
        notes.append(f"left out {count} with requests that are no principle's, word for word.")
    held = {p.id for p in found.of("evaluation")}
    unseen = sum(one.principle in held for one in found.demonstrations.revisions)
    if unseen:
        count = _count(unseen, "worked revision")
        notes.append(f"{count} for evaluation principles: a run shows only those of training principles.")
    return notes


def on_purposes(found: Constitution, wholes: Sequence[Whole]) -> list[str]:
    """Which principles are held back, and why."""
    held = [f"`{p.id}`" for p in found.of("evaluation")]
    given = [whole.draft.purpose for whole in wholes]
    if not held:
        return [
            "no principle is for evaluation, so the stage evaluate cannot run. Add one with that purpose."
        ]
    if not any(given):
        said = f"held back for evaluation, as no file gives purposes: {listed(held, len(held))}."
        return [f"{said} Choose others if they suit better."]
    unsaid = given.count(None)
    return [f"{_count(unsaid, 'principle')} without a purpose, now for training."] if unsaid else []


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
