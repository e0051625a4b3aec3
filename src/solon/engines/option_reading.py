"""Which option a reply means, from the top log-probabilities of its tokens: pure functions.

A server does not score a given text; it tells the likeliest tokens at every place of its own reply. Tokens
cut "(A)" differently: "(A)", "(" and "A)", "(A" and ")". The place that decides is the first one at which a
token leaves no more than one option open.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class TopLogprobs:
    """One place of a reply: the chosen token, and the likeliest ones with their log-probabilities."""

    token: str
    top: tuple[tuple[str, float], ...]


def read_options(places: Sequence[TopLogprobs], options: Sequence[str]) -> tuple[float, ...] | None:
    """Log-probability in nats of each option at the place that decides, given the reply before it.

    None where no place decides between all of them: an option is not among the top tokens, or most of what
    begins an option there leaves it open which. Nothing is made up for it.
    """
    said = ""
    for place in places:
        text = (said + place.token).lstrip()
        if sum(_agree(text, option) for option in options) > 1:
            said = text
            continue
        found = tuple(_mass(said, place, (option,), options) for option in options)
        undecided = max((_mass(said, place, some, options) for some in _several(options)), default=-math.inf)
        # Where most of what begins an option leaves it open, the rest is no measure of the options.
        told = all(math.isfinite(mass) for mass in found) and undecided <= max(found)
        return found if told else None
    return None


def _several(options: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All choices of two options and more."""
    for size in range(2, len(options) + 1):
        yield from combinations(options, size)


def _mass(said: str, place: TopLogprobs, left: Sequence[str], options: Sequence[str]) -> float:
    """Log of the summed probability of the tokens after which exactly the options of `left` are left."""
    logps = [
        logp
        for token, logp in place.top
        if (text := (said + token).lstrip()) and [o for o in options if _agree(text, o)] == list(left)
    ]
    top = max(logps, default=-math.inf)
    finite = math.isfinite(top)
    return top + math.log(sum(math.exp(logp - top) for logp in logps)) if finite else -math.inf


def _agree(text: str, option: str) -> bool:
    """Whether the text is the start of the option, or the option and what may follow it: "10" is not "1"."""
    if text.startswith(option):
        return not text[len(option) : len(option) + 1].isalnum()
    return option.startswith(text)
