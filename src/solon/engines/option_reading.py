"""Which option a reply means, from the top log-probabilities of its tokens: pure functions.

A server does not score a given text; it tells the likeliest tokens at every place of its own reply. Tokens
cut "(A)" differently: "(A)", "(" and "A)", "(A" and ")". The place that decides is the first one at which a
token leaves no more than one option open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TopLogprobs:
    """One place of a reply: the chosen token, and the likeliest ones with their log-probabilities."""

    token: str
    top: tuple[tuple[str, float], ...]


def read_options(places: Sequence[TopLogprobs], options: Sequence[str]) -> tuple[float, ...] | None:
    """Log-probability in nats of each option at the place that decides, given the reply before it.

    None where no place decides between all of them: the model said something else, or an option is not
    among the top ones. Nothing is made up for it.
    """
    said = ""
    for place in places:
        text = (said + place.token).lstrip()
        if sum(_agree(text, option) for option in options) > 1:
            said = text
            continue
        found = tuple(_mass(said, place, option, options) for option in options)
        return found if all(math.isfinite(mass) for mass in found) else None
    return None


def _mass(said: str, place: TopLogprobs, option: str, options: Sequence[str]) -> float:
    """Log of the summed probability of the tokens after which only this option is left."""
    others = [other for other in options if other != option]
    logps = [
        logp
        for token, logp in place.top
        if _agree(text := (said + token).lstrip(), option)
        and text
        and not any(_agree(text, other) for other in others)
    ]
    top = max(logps, default=-math.inf)
    finite = math.isfinite(top)
    return top + math.log(sum(math.exp(logp - top) for logp in logps)) if finite else -math.inf


def _agree(text: str, option: str) -> bool:
    """Whether one is the start of the other."""
    return text.startswith(option) or option.startswith(text)
