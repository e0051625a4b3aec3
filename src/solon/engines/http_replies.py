"""What replies of OpenAI's chat and completions interfaces hold.

Every function raises KeyError, TypeError, ValueError or IndexError for a reply of another form, which the
client tells as such. `None` stands for what a server leaves out where it does not offer it.
"""

import math
from collections.abc import Sequence
from typing import Any

from solon.engines.base import Completion
from solon.engines.option_reading import TopLogprobs
from solon.records import Finish
from solon.text import HALF, half_a_character

Reply = dict[str, Any]
_CUT = ("length", "content_filter")  # Reasons for an end that is not the text's own
_BROKEN_OFF = ("abort", "error")  # Worth another attempt


def chat_completion(reply: Reply, tokens: bool) -> Completion:
    """The turn; with `tokens` its ids and log-probabilities as well, which the reply then must hold."""
    choice = _choice(reply)
    text = _object(choice.get("message"), "message").get("content")
    told = [place["logprob"] for place in choice["logprobs"]["content"]] if tokens else []
    return _completion(reply, choice, text, told, tokens)


def text_completion(reply: Reply, tokens: bool) -> Completion:
    """As `chat_completion`, of the completions interface."""
    choice = _choice(reply)
    told = choice["logprobs"]["token_logprobs"] if tokens else []
    return _completion(reply, choice, choice["text"], told, tokens)


def _completion(reply: Reply, choice: Reply, text: Any, told: Sequence[Any], tokens: bool) -> Completion:
    if not isinstance(text, str | None):
        raise TypeError("the text is none")
    if text and half_a_character(text):  # A server cut it; it is worth another attempt
        raise ValueError("the text has half a character")
    usage = reply.get("usage") or {}
    finish = _finish(choice.get("finish_reason"))
    ids = tuple(int(token) for token in choice["token_ids"]) if tokens else ()
    logprobs = tuple(_finite(logp) for logp in told)
    if len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} ids and {len(logprobs)} log-probabilities")
    new = int(usage.get("completion_tokens") or len(ids))
    said = (text or "").rstrip(HALF if finish == "length" else "").strip()
    return Completion(said, ids, finish, int(usage.get("prompt_tokens") or 0), new, logprobs)


def _finish(told: Any) -> Finish:
    if told in _BROKEN_OFF:
        raise ValueError(f"the answer was broken off ({told})")
    return "length" if told in _CUT else "stop"


def top_logprobs(reply: Reply) -> list[TopLogprobs] | None:
    """The most probable tokens at each place of a chat reply."""
    content = (_choice(reply).get("logprobs") or {}).get("content")
    if content is None:
        return None
    return [
        TopLogprobs(
            str(place["token"]),
            tuple((str(one["token"]), float(one["logprob"])) for one in place.get("top_logprobs") or ()),
        )
        for place in content
    ]


def prompt_logprobs(reply: Reply) -> list[tuple[str, float]] | None:
    """Id and log-probability of every token of the prompt; the first has none and stands as ("", 0)."""
    rows = reply.get("prompt_logprobs")
    if not isinstance(rows, list) or not rows:
        return None
    return [("", 0.0), *(_asked_token(row) for row in rows[1:])]


def _asked_token(row: Reply) -> tuple[str, float]:
    """The id and log-probability of the token that stands there: with `prompt_logprobs: 0` the only one."""
    [(token, told)] = row.items()
    return token, _finite(told["logprob"])


def echoed(reply: Reply) -> list[tuple[str, float]] | None:
    """Every token of an echoed text and its log-probability; the first has none and stands with 0.

    The last token of the reply is left out: it is a new one, since not every server may be asked for none.
    Offsets are not read: servers count them differently, with and without the token that begins a text.
    """
    told = _choice(reply).get("logprobs")
    if not told or len(told["tokens"]) < 2:  # A server that does not know `echo` returns the new one alone
        return None
    pairs = list(zip(told["tokens"], told["token_logprobs"], strict=True))[:-1]
    return [(str(pairs[0][0]), 0.0), *((str(token), _finite(logp)) for token, logp in pairs[1:])]


def _choice(reply: Reply) -> Reply:
    choices = reply.get("choices")
    return _object(choices[0] if isinstance(choices, list) and choices else None, "choice")


def _object(found: Any, name: str) -> Reply:
    if not isinstance(found, dict):
        raise ValueError(f"it holds no {name}; has this server OpenAI's interface?")
    return found


def _finite(value: Any) -> float:
    found = float(value)
    if not math.isfinite(found):
        raise ValueError("a log-probability is no number")
    return found
