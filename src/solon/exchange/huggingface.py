"""Hugging Face's constitution: pairs of requests, and chats that show how to answer them.

A chat becomes worked revisions if it is a row of six turns, once or repeated: a question and its answer,
a request for critique and the critique, a request for revision and the revision. Other chats are left out,
with a note.
"""

from collections.abc import Sequence

from solon.errors import Problem
from solon.exchange.drafts import (
    HUGGINGFACE,
    Draft,
    Reading,
    Spot,
    Worked,
    kind,
    left_out,
    wording,
)

_PAIR = 'Write {"critic": "…", "revision": "…"}.'
_TURN = 'Write each turn as {"role": "user", "content": "…"}.'
_SIX = 6

Turn = tuple[str, str]


def read(data: object, file: str) -> Reading:
    """`{"constitutions": [{"critic": …, "revision": …}], "system_chat": [[turn, …], …]}`, or the list alone.

    `system_chat` may be absent, or one row of turns.
    """
    problems: list[Problem] = []
    top = Spot(file)
    if isinstance(data, list):
        drafts, others = _drafts(data, top, problems)
        return Reading(file, HUGGINGFACE, drafts, (), tuple(left_out(others, file, "keys")), tuple(problems))
    pairs = data.get("constitutions") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(pairs, list):
        what = "the file holds no list `constitutions`"
        return Reading(file, HUGGINGFACE, (), problems=(top.problem(what, _PAIR),))
    drafts, others = _drafts(pairs, top.at("constitutions"), problems)
    worked, notes = _chats(data.get("system_chat"), top.at("system_chat"), problems)
    others += [key for key in data if key not in ("constitutions", "system_chat")]
    notes += left_out(others, file, "keys")
    return Reading(file, HUGGINGFACE, drafts, worked, tuple(notes), tuple(problems))


def _drafts(pairs: list[object], spot: Spot, problems: list[Problem]) -> tuple[tuple[Draft, ...], list[str]]:
    """The drafts, and the keys that are neither `critic` nor `revision`."""
    drafts: list[Draft] = []
    others: list[str] = []
    for index, pair in enumerate(pairs):
        here = spot.at(index)
        if not isinstance(pair, dict):
            problems.append(here.problem(f"is {kind(pair)}, not an object", _PAIR))
            continue
        others += [key for key in pair if key not in ("critic", "revision")]
        problems += [here.at(k).problem("is missing", _PAIR) for k in ("critic", "revision") if k not in pair]
        critique, revision = (
            wording(pair[key], here.at(key), problems) if key in pair else ""
            for key in ("critic", "revision")
        )
        drafts.append(Draft(here, critique=critique, revision=revision))
    return tuple(drafts), others


def _chats(value: object, spot: Spot, problems: list[Problem]) -> tuple[tuple[Worked, ...], list[str]]:
    """The worked revisions, and a note on what is none."""
    if value is None:
        return (), []
    if not isinstance(value, list):
        problems.append(spot.problem(f"is {kind(value)}, not a list", _TURN))
        return (), []
    chats = [_turns(chat, place, problems) for chat, place in _rows(value, spot)]
    found = [(chat, _worked(chat)) for chat in chats if chat]
    lost = [chat for chat, worked in found if not worked]
    worked = tuple(one for _, chat in found for one in chat)
    return worked, _unshaped(len(lost), len(found), sum(map(len, lost)), spot)


def _rows(value: list[object], spot: Spot) -> list[tuple[list[object], Spot]]:
    """The chats, each with its place; turns that stand in no list of their own are one chat."""
    if any(isinstance(chat, list) for chat in value):
        return [(c if isinstance(c, list) else [c], spot.at(i)) for i, c in enumerate(value)]
    return [(value, spot)]


def _unshaped(lost: int, count: int, turns: int, spot: Spot) -> list[str]:
    if not lost:
        return []
    why = "they are not question, answer, request, critique, request, revision"
    return [
        f"{spot}: left out {lost} of {count} chats ({turns} turns): {why}, or a text is empty or too long."
    ]


def _turns(chat: list[object], spot: Spot, problems: list[Problem]) -> list[Turn]:
    turns: list[Turn] = []
    for index, turn in enumerate(chat):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            problems.append(spot.at(index).problem("is no turn of a chat", _TURN))
        else:
            turns.append((role, content))
    return turns


def _worked(turns: Sequence[Turn]) -> list[Worked]:
    """The worked revisions that the turns are; none if any turn does not fit."""
    faults: list[Problem] = []
    texts = [wording(content, Spot(""), faults) for _, content in turns]
    roles = [role for role, _ in turns]
    if faults or len(turns) % _SIX or roles != ["user", "assistant"] * (len(turns) // 2):
        return []
    return [Worked(*texts[at : at + _SIX]) for at in range(0, len(texts), _SIX)]


def as_chat(worked: Worked) -> list[dict[str, str]]:
    """The six turns that `read` makes into the same worked revision."""
    texts = (worked.prompt, worked.answer, worked.critic, worked.critique, worked.reviser, worked.revision)
    roles = ("user", "assistant") * 3
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
