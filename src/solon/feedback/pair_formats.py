"""What a record of a preference set says: the conversation, the better answer and the worse one.

Pure functions of one parsed record, for three formats: a prompt with a chosen and a rejected answer (TRL),
two whole transcripts (HH), a question with two lettered options (HHH). Texts lose the white space around
them and nothing else, and are split only at the format's own markers. Linear in the length of a text,
whatever it holds.
"""

import re
from itertools import groupby
from operator import itemgetter
from typing import Any

from solon.engines.base import Conversation, Message, user
from solon.text import half_a_character

KEYS = ("prompt", "chosen", "rejected", "corrects", "incorrects", "text_correct", "text_incorrect")
FORMATS = (
    "Write `prompt`, `chosen` and `rejected`; or two transcripts `chosen` and `rejected`; "
    "or `prompt` with options, `corrects` and `incorrects`."
)
EMPTY = "an answer is empty"
DIFFER = "the two conversations differ before the last answer"

Parts = tuple[Conversation, str, str]

_ROLES = ("system", "user", "assistant")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_NEXT_OPTION = re.compile(r"\]\]\]\s*\(B\)\s*\[\[\[")


class FormatError(Exception):
    """A record that breaks its format: what is wrong, and how to mend it."""

    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(what)


def parts(record: Any) -> Parts | str:
    """Conversation, better and worse answer by the record's own format, or why there are none."""
    if not isinstance(record, dict):
        raise FormatError(f"the record is a {type(record).__name__}, not an object", FORMATS)
    given = {key for key, value in record.items() if value is not None}  # Parquet fills gaps with null
    if given & {"corrects", "incorrects"}:
        return _options_pair(record)
    if not given & {"chosen", "rejected"}:
        raise FormatError("the record has no `chosen` and `rejected`, nor `corrects`", FORMATS)
    if "prompt" in given:
        conversation = _prompt(record["prompt"])
        chosen, rejected = (_answer(record, key, conversation) for key in ("chosen", "rejected"))
        return conversation, chosen, rejected
    return _cut(_whole(record, "chosen"), _whole(record, "rejected"))


# --- checked values -----------------------------------------------------------------------------------


def _value(record: dict[str, Any], key: str) -> Any:
    if record.get(key) is None:
        raise FormatError(f"`{key}` is missing", FORMATS)
    return record[key]


def _string(value: Any, name: str) -> str:
    """The text without white space around it."""
    if not isinstance(value, str):
        raise FormatError(f"`{name}` is a {type(value).__name__}, not a string", 'Write it as a string: "…".')
    if half_a_character(value):
        raise FormatError(f"`{name}` is no text", "It holds half of a surrogate pair; type it again.")
    return value.strip()


def _turns(value: list[Any], name: str) -> list[Message]:
    """The turns of TRL's conversational format."""
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            what = f"a turn of `{name}` has no role among {', '.join(_ROLES)}"
            raise FormatError(what, 'Write each turn as {"role": "user", "content": "…"}.')
        turns.append(Message(turn["role"], _string(turn.get("content"), f"{name}[].content")))
    return turns


# --- a prompt and two answers -------------------------------------------------------------------------


def _prompt(value: Any) -> Conversation:
    if isinstance(value, list):
        turns = _turns(value, "prompt")
        if not turns or turns[-1].role != "user":
            raise FormatError("`prompt` does not end in a user's turn", "End it with what is to be answered.")
        return tuple(turns)
    text = _string(value, "prompt")
    preamble, asked = _asked(text)
    return asked if asked and not preamble else user(text)


def _answer(record: dict[str, Any], key: str, conversation: Conversation) -> str:
    value = _value(record, key)
    if not isinstance(value, list):
        return _string(value, key)
    turns = _turns(value, key)
    if tuple(turns[:-1]) == conversation:  # some sets repeat the prompt in front of each answer
        turns = turns[-1:]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise FormatError(f"`{key}` is not one turn of the assistant", "Put the turns before it in `prompt`.")
    return turns[0].content


# --- two transcripts ----------------------------------------------------------------------------------


def _transcript(text: str) -> tuple[str, list[Message]]:
    """What stands before the first marker, and the turns; turns of one speaker in a row are one."""
    preamble, *pieces = _TURN.split(text)
    turns = []
    for name, run in groupby(zip(pieces[::2], pieces[1::2], strict=True), key=itemgetter(0)):
        content = "\n\n".join(said.strip() for _, said in run).strip()
        turns.append(Message(_SPEAKERS[name], content))
    return preamble.strip(), turns


def _asked(text: str) -> tuple[str, Conversation]:
    """The preamble and the turns of a transcript that breaks off where the assistant is to speak.

    No turns if the text is no such transcript.
    """
    preamble, turns = _transcript(text)
    ends_open = len(turns) > 1 and turns[-1] == Message("assistant", "")
    return preamble, tuple(turns[:-1]) if ends_open else ()


def _whole(record: dict[str, Any], key: str) -> list[Message]:
    value = _value(record, key)
    if isinstance(value, list):
        return _turns(value, key)
    text = _string(value, key)
    preamble, turns = _transcript(text)
    if preamble or (text and not turns):
        fix = "Begin it with a blank line and `Human:`, or give the question as `prompt`."
        raise FormatError(f"`{key}` is no transcript, and there is no `prompt`", fix)
    return turns


def _cut(chosen: list[Message], rejected: list[Message]) -> Parts | str:
    """What both share up to a user's turn, and what the assistant says then.

    A user's last word that nobody answers is dropped. If more is said behind the answers, nobody knows
    which turn made one transcript the better one.
    """
    if not chosen or not rejected:
        return EMPTY
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    while same and chosen[same - 1].role != "user":
        same -= 1
    rests = (chosen[same:], rejected[same:])
    known = [["assistant", "user"][: len(rest)] == [turn.role for turn in rest] for rest in rests]
    if not same or not all(known):
        return DIFFER
    better, worse = (rest[0].content if rest else "" for rest in rests)
    return tuple(chosen[:same]), better, worse


# --- a question with two options ----------------------------------------------------------------------


def _options_pair(record: dict[str, Any]) -> Parts:
    """The part before the options is the user's turn, unless it is a transcript to be continued.

    What stands before such a transcript speaks to whoever chooses an option, and is dropped.
    """
    stem, options = _options(_string(_value(record, "prompt"), "prompt"))
    better, worse = _named(record, "corrects"), _named(record, "incorrects")
    if better == worse:
        raise FormatError("`corrects` and `incorrects` name the same option", "Name one in each.")
    chosen = _said(record, "text_correct", options[better])
    rejected = _said(record, "text_incorrect", options[worse])
    if options[better] != options[worse] and (chosen == options[worse] or rejected == options[better]):
        what = "`text_correct` and `text_incorrect` contradict `corrects` and `incorrects`"
        raise FormatError(what, "Give each text the letter of its own option.")
    conversation = _asked(stem)[1] or _told(record, (chosen, rejected)) or user(stem)
    return conversation, chosen, rejected


def _options(prompt: str) -> tuple[str, dict[str, str]]:
    """The part before the options, and the text of each. Found from the end: any text may hold brackets."""
    stem, found, rest = prompt.rpartition("(A) [[[")
    between = _NEXT_OPTION.search(rest)
    if not found or between is None or "]]]" not in rest[between.end() :]:
        fix = "Write (A) [[[one answer]]] and (B) [[[the other]]], each on a line, behind the question."
        raise FormatError("`prompt` does not end in the options (A) and (B)", fix)
    second = rest[between.end() :].rpartition("]]]")[0]
    head, _, last = stem.rstrip().rpartition("\n")
    stem = head if last.strip() == "Options:" else stem
    return stem.strip(), {"(A)": rest[: between.start()].strip(), "(B)": second.strip()}


def _named(record: dict[str, Any], key: str) -> str:
    value = _value(record, key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    letter = value.strip() if isinstance(value, str) else ""
    if letter not in ("(A)", "(B)"):
        raise FormatError(f"`{key}` does not name one of two options", 'Write ["(A)"] or ["(B)"].')
    return letter


def _said(record: dict[str, Any], key: str, option: str) -> str:
    """The answer in full: the option's own text, or what `key` gives, less the conversation before it."""
    if record.get(key) in (None, ""):
        return option
    text = _string(record[key], key)
    if option and text.endswith(option):
        return option
    preamble, turns = _transcript(text)
    return turns[-1].content if turns and not preamble else text


def _told(record: dict[str, Any], answers: tuple[str, str]) -> Conversation:
    """The conversation of two full transcripts in `text_correct` and `text_incorrect`, else no turns."""
    texts = [record.get(key) for key in ("text_correct", "text_incorrect")]
    found = _cut(*(_transcript(text)[1] if isinstance(text, str) else [] for text in texts))
    return found[0] if not isinstance(found, str) and found[1:] == answers else ()
