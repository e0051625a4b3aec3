"""Files of other formats into one constitution, with a note on all that was left out, derived or changed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from solon.constitution import Constitution, Demonstrations, Name, Principle, Purpose, Revised
from solon.errors import Problem, ProblemsError, UsageError
from solon.exchange import notes
from solon.exchange.drafts import PAPER_COMPARISONS, PAPER_REVISIONS, Draft, Format, Reading
from solon.exchange.files import format_named, read
from solon.exchange.wordings import Whole, complete
from solon.rowfiles import printable

_MOST_PROBLEMS = 20
_HELD_BACK = 5  # one in so many
_NAME: TypeAdapter[str] = TypeAdapter(Name)


def import_constitution(files: list[Path], name: str, format_: str | None) -> tuple[Constitution, list[str]]:
    """The principles of all files in their order, and notes for the user.

    A paper's revisions and comparisons are matched in order if there are equally many of both. The result
    loads back from its YAML with the same digest.

    Raises:
        UsageError: the name or the format cannot be, or a file cannot be opened.
        ProblemsError: what is wrong in the files, every fault with its place and how to mend it.
    """
    _check_name(name)
    readings = _readings(files, format_named(format_) if format_ is not None else None)
    drafts, joined = _joined(readings)
    wholes, dropped = complete(drafts)
    purposes = _purposes([whole.draft.purpose for whole in wholes])
    _raise_if(_misfits(wholes, purposes))
    worked, strays = _worked(readings, wholes)
    sources = ", ".join(printable(path.name) for path in files)
    found = Constitution(
        name=name,
        version="1",
        description=f"Imported from {sources}.",
        principles=tuple(_principle(*pair) for pair in zip(wholes, purposes, strict=True)),
        demonstrations=Demonstrations(revisions=worked),
    )
    own = [note for reading in readings for note in reading.notes]
    told = [*notes.on_principles(wholes, dropped), *notes.on_worked(found, strays)]
    return found, [*own, *joined, *told, *notes.on_purposes(found, wholes), notes.NO_COMPARISONS]


def _check_name(name: str) -> None:
    try:
        _NAME.validate_python(name)
    except ValidationError as error:
        what = f"the name `{printable(name)}` cannot be"
        raise UsageError(f"{what}. Use small letters, digits, - and _; at most 64.") from error


def _readings(files: Sequence[Path], format_: Format | None) -> list[Reading]:
    if not files:
        raise UsageError("there is no file to import. Name one or more.")
    readings: list[Reading] = []
    problems: list[Problem] = []
    for path in files:
        try:
            reading = read(path, format_)
        except ProblemsError as error:
            problems += error.problems
            continue
        problems += reading.problems
        readings.append(reading)
    _raise_if(problems)
    return readings


def _raise_if(problems: list[Problem]) -> None:
    """Raise them together; of very many the first, since a wrong file has one an entry."""
    more = len(problems) - _MOST_PROBLEMS
    if more > 0:
        fix = "Mend these first; the same fix may help them all."
        last = Problem(problems[_MOST_PROBLEMS].file, None, f"and {more} more", fix)
        problems = [*problems[:_MOST_PROBLEMS], last]
    if problems:
        raise ProblemsError(problems)


def _joined(readings: Sequence[Reading]) -> tuple[list[Draft], list[str]]:
    """All drafts, each of the paper's revisions with the comparison of the same number if counts agree."""
    counts = Counter(reading.format for reading in readings for _ in reading.drafts)
    revisions, comparisons = counts[PAPER_REVISIONS], counts[PAPER_COMPARISONS]
    drafts = [draft for reading in readings for draft in reading.drafts]
    if not revisions or not comparisons:
        return drafts, []
    if revisions != comparisons:
        return drafts, [
            f"revisions ({revisions}) and comparisons ({comparisons}) were not matched, since their counts "
            "differ: each is a principle of its own, with its other wordings derived."
        ]
    asked = iter([d for r in readings if r.format == PAPER_COMPARISONS for d in r.drafts])
    matched = [
        replace(draft, question=next(asked).question) if reading.format == PAPER_REVISIONS else draft
        for reading in readings
        if reading.format != PAPER_COMPARISONS
        for draft in reading.drafts
    ]
    return matched, [
        f"{revisions} revisions and {comparisons} comparisons were matched in their order. "
        "Nothing in the files says which belong together: check it."
    ]


def _purposes(given: Sequence[Purpose | None]) -> list[Purpose]:
    """Each principle's purpose. If none is given, the last fifth is held back, at least one of two."""
    if any(given):
        return [purpose or "training" for purpose in given]
    held = max(1, len(given) // _HELD_BACK) if len(given) > 1 else 0
    return ["training" if index < len(given) - held else "evaluation" for index in range(len(given))]


def _misfits(wholes: Sequence[Whole], purposes: Sequence[Purpose]) -> list[Problem]:
    """What only the whole constitution shows."""
    problems = [problem for whole in wholes for problem in whole.problems()]
    if "training" not in purposes:
        fix = "Give at least one the purpose training."
        problems.append(wholes[0].draft.spot.problem("no principle is for training", fix))
    return problems


def _principle(whole: Whole, purpose: Purpose) -> Principle:
    draft = whole.draft
    return Principle(
        id=whole.id,
        about=whole.about,
        weight=draft.weight,
        purpose=purpose,
        asked_on=draft.asked_on,
        **whole.wordings,
    )


def _worked(readings: Sequence[Reading], wholes: Sequence[Whole]) -> tuple[tuple[Revised, ...], int]:
    """The worked revisions, each for the principle whose two requests it shows; how many show no one's."""
    ids = {(w.draft.critique, w.draft.revision): w.id for w in reversed(wholes)}
    shown = [worked for reading in readings for worked in reading.worked]
    found = tuple(
        Revised(
            principle=ids[one.critic, one.reviser],
            prompt=one.prompt,
            answer=one.answer,
            critique=one.critique,
            revision=one.revision,
        )
        for one in shown
        if (one.critic, one.reviser) in ids
    )
    return found, len(shown) - len(found)
