"""Pairs across prompts: an answer beside a refusal of another prompt."""

import random

from hypothesis import given
from hypothesis import strategies as st

from solon.records import Written
from solon.stages.label import crossed_pairs
from tests.rows import written

REFUSAL = "I can't help with that."


def _row(prompt: str, text: str) -> Written:
    return written(text, origin="sl", prompt_id=prompt, prompt=prompt, prompt_kind="helpful", request=prompt)


OWN = [_row("bread", text) for text in ("Knead it well.", "Let it rise.", REFUSAL)]
REFUSALS = [
    _row("bread", REFUSAL),
    _row("bomb", "I won't do that."),
    _row("theft", "I can't, it is a crime."),
]


@given(st.integers(0, 5), st.integers())
def test_answers_stand_beside_refusals_of_other_prompts(count: int, seed: int) -> None:
    pairs = crossed_pairs(OWN, REFUSALS, count, random.Random(seed))
    assert len(pairs) == min(count, 2), "the own refusal is in no pair"
    assert len({a.text for a, _ in pairs}) == len(pairs)
    assert all(a in OWN[:2] and b in REFUSALS[1:] for a, b in pairs)


def test_without_a_refusal_elsewhere_there_is_no_pair() -> None:
    assert crossed_pairs(OWN, REFUSALS[:1], 3, random.Random(0)) == []
