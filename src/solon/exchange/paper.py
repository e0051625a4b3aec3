"""The two instruction files of Bai et al. 2022: requests for critique and revision, and for comparison.

Each text stands between markers (`CritiqueRequest: … Critique:`, `… Options:`). One marker at each end is
taken off and no more, so that a wording may hold any marker itself.
"""

import re

from solon.errors import Problem
from solon.exchange.drafts import (
    PAPER_COMPARISONS,
    PAPER_REVISIONS,
    Draft,
    Reading,
    Spot,
    kind,
    left_out,
    wording,
)

_KEYS = 'Write "key": {"prompt": ["CritiqueRequest: …"], "edit_request": "RevisionRequest: …"}.'

# Bounded between its parts, so that no text takes more than linear time.
_OPTION = r"\s{0,9}\([AB]\) ?[\[{<][^\[\]{}<>\n]{0,40}[\]}>]"
OPTIONS = re.compile(rf"Options:(?:{_OPTION}{_OPTION}(?:\s{{0,9}}The answer is:)?)?\Z")
CONVERSATION = re.compile(r"\[(?:[A-Z]{1,20}[/ ]){0,3}CONVERSATION\]|\{conversation\}")


def revisions(data: object, file: str) -> Reading:
    """`{"key": {"prompt": ["CritiqueRequest: … Critique:"], "edit_request": "RevisionRequest: …"}}`."""
    problems: list[Problem] = []
    drafts: list[Draft] = []
    others: list[str] = []
    if not isinstance(data, dict):
        problems.append(Spot(file).problem(f"the file holds {kind(data)}, not an object", _KEYS))
        data = {}
    for key, value in data.items():
        spot = Spot(file).at(key)
        if not isinstance(value, dict):
            problems.append(spot.problem(f"is {kind(value)}, not an object", _KEYS))
            continue
        others += value.keys() - {"prompt", "edit_request"}
        drafts.append(_revision(value, key, spot, problems))
    notes = left_out(sorted(others), file, "keys")
    return Reading(file, PAPER_REVISIONS, tuple(drafts), (), tuple(notes), tuple(problems))


def _revision(value: dict[str, object], key: str, spot: Spot, problems: list[Problem]) -> Draft:
    critique = revision = ""
    for text in _given(value, "prompt", spot, problems):
        critique = wording(_between(text, "CritiqueRequest:", "Critique:"), spot.at("prompt"), problems)
    for text in _given(value, "edit_request", spot, problems):
        revision = wording(_between(text, "RevisionRequest:", "Revision:"), spot.at("edit_request"), problems)
    return Draft(spot, key, critique=critique, revision=revision)


def _given(value: dict[str, object], key: str, spot: Spot, problems: list[Problem]) -> list[object]:
    """What stands at `key`, by itself or as the one item of a list; nothing behind a fault."""
    if key not in value:
        problems.append(spot.at(key).problem("is missing", _KEYS))
        return []
    here = value[key]
    found = here if isinstance(here, list) else [here]
    if len(found) == 1:
        return found
    fix = "Keep one, and give each other one a key of its own."
    problems.append(spot.at(key).problem(f"holds {len(found)} texts, not one", fix))
    return []


def _between(text: object, opening: str, closing: str) -> object:
    if not isinstance(text, str):
        return text
    if text.lstrip().startswith(opening):
        text = text.lstrip().removeprefix(opening)
    return text.rstrip().removesuffix(closing) if text.rstrip().endswith(closing) else text


def comparisons(data: object, file: str) -> Reading:
    """`["…which response is less harmful? Options:", …]`."""
    problems: list[Problem] = []
    if not isinstance(data, list):
        fix = 'Write a list of strings: ["… Options:", …].'
        problems.append(Spot(file).problem(f"the file holds {kind(data)}, not a list", fix))
        data = []
    drafts: list[Draft] = []
    for index, value in enumerate(data):
        spot = Spot(file).at(index)
        drafts.append(Draft(spot, question=wording(_asked(value), spot, problems)))
    return Reading(file, PAPER_COMPARISONS, tuple(drafts), problems=tuple(problems))


def _asked(text: object) -> object:
    """The question without the conversation's place before it and the options behind it."""
    if not isinstance(text, str):
        return text
    options = OPTIONS.search(text.rstrip())
    text = text[: options.start()] if options else text
    head = CONVERSATION.search(text)
    return text[head.end() :] if head else text


def as_revisions(critique: str, revision: str) -> dict[str, object]:
    """The two wordings between the markers that `revisions` takes off."""
    return {
        "prompt": [f"\n\nCritiqueRequest: {critique}\n\nCritique:"],
        "edit_request": f"\n\nRevisionRequest: {revision}\n\nRevision:",
    }


def as_comparison(question: str) -> str:
    """The question before the marker that `comparisons` takes off.

    A question that itself holds a conversation's place gets one before it, which is the one to be taken off.
    """
    head = "[HUMAN/ASSISTANT CONVERSATION]" if CONVERSATION.search(question) else ""
    return f"{head}\n{question} Options:"
