"""Which revisions are no training data, and why: a small model often returns something else instead.

Every rejection has a name, so that a run can count them; nothing is deleted.
"""

import re
from collections.abc import Sequence

from solon.text import copied_share, is_degenerate, jaccard, word_ngrams, words

NEARLY_THE_SAME = 0.95
"""Word-trigram Jaccard above which a revision is the answer again: one word changed in over 100."""

_QUALITY = r"(?:revised|rewritten|improved|corrected|rephrased|reworded|edited|updated)"
_REPLY = r"(?:response|answer|reply)"

_ABOUT_THE_RESPONSE = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        # "The answer helps to …": a critique in place of an answer ("The answer is 42" is none)
        r"\A\W*(?:the|my|your|this)\s+(?:last\s+)?answer\s+(?:helps|encourages|promotes|spreads|insults|advises"
        r"|promises|contains|harms|lacks|tells|could\s+(?:harm|hurt|lead))\b",
        # "the original response", "my previous answer", "your revised reply"
        rf"\b(?:the|my|your|this|that|an?)\s+(?:original|previous|initial|earlier|prior|{_QUALITY})\s+{_REPLY}\b",
        # "the assistant's answer", "the AI's last reply", "the chatbot's harmful response"
        rf"\b(?:assistant|ai|ai model|chatbot|language model)'s\s+(?:\w+\s+){{0,2}}{_REPLY}\b",
        # "here is a revised version", "here's the rewritten and safer response"
        rf"\bhere(?:'s|\s+is|\s+are)\s+(?:\w+,?\s+){{0,3}}{_QUALITY},?\s+(?:\w+,?\s+){{0,3}}(?:version|revision|{_REPLY})",
        # "Revised answer: …", "**Revision:** …", "Critique: …" at the start of a line
        rf"^[ \t*_#>]*(?:revision|critique|{_QUALITY}\s+(?:version|text|{_REPLY}))\b[\s*_]*:",
        # "this critique", "the critique above", "the revision request"
        r"\bthis\s+critique\b|\bthe\s+critique\s+(?:above|request)\b|\b(?:critique|revision)\s+request\b",
        # "I have rewritten the response", "I revised my answer"
        rf"\bi(?:'ve|\s+have)?\s+(?:revised|rewritten|rewrote|rephrased|reworded|edited)\s+"
        rf"(?:the|my|your|this)\s+(?:\w+\s+)?{_REPLY}\b",
        # A critique in place of a revision: a text that opens with "The response is harmful because …"
        r"\A\W*(?:the|this)\s+(?:response|reply)\s+(?:is|was|could|should|does|has|contains|fails|lacks"
        r"|promotes|encourages|provides|includes|avoids|acknowledges)\b",
    )
)

_LABEL = re.compile(
    rf"\A\s*(?:\*\*|__)?(?:assistant|{_REPLY}|revision|(?:{_QUALITY}|final|better)\s+(?:version|{_REPLY}))"
    r"\s*(?::\s*(?:\*\*|__)|(?:\*\*|__)?\s*:)\s*",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "«": "»"}


def clean(text: str) -> str:
    """`text` without white space around it, one leading label ("Revision:") and quotes around the whole."""
    bare = _LABEL.sub("", text).strip()
    inside = bare[1:-1]
    if len(bare) >= 2 and _QUOTES.get(bare[0]) == bare[-1] and not {bare[0], bare[-1]} & set(inside):
        return inside.strip()
    return bare


def reject_revision(
    revision: str, answer: str, demonstrations: Sequence[str], max_copied: float, critique: str = ""
) -> str | None:
    """The name of the reason why `revision` is not used as training data, or None for a usable one.

    "empty", "not-words", "repetitive": see `text.is_degenerate`. "unchanged": it is the answer again, up
    to case, white space and punctuation, or nearly. "talks-about-the-response": it speaks of an answer
    instead of being one. "copies-demonstration": more than `max_copied` of its word trigrams stand in one
    of the demonstrations that were shown; "copies-critique": the same of the critique it should heed.
    """
    degenerate = is_degenerate(revision)
    if degenerate:
        return degenerate
    if _is_unchanged(revision, answer):
        return "unchanged"
    if talks_about_the_response(revision):
        return "talks-about-the-response"
    if any(copied_share(revision, shown) > max_copied for shown in demonstrations):
        return "copies-demonstration"
    if critique and copied_share(revision, critique) > max_copied:
        return "copies-critique"
    return None


def _is_unchanged(revision: str, answer: str) -> bool:
    if words(revision) == words(answer):
        return True
    a, b = word_ngrams(revision, 3), word_ngrams(answer, 3)
    return bool(a and b) and jaccard(a, b) > NEARLY_THE_SAME


def talks_about_the_response(text: str) -> bool:
    """Whether `text` speaks of a response, critique or revision as of a thing that lies before it."""
    plain = text.replace("’", "'")
    return any(pattern.search(plain) for pattern in _ABOUT_THE_RESPONSE)
