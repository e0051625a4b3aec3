"""Templates are filled in one pass and refuse a missing or an extra slot."""

import pytest

from solon.templates import fill


def test_values_are_never_filled_again() -> None:
    text = fill("choice", dialogue="{question}", a="{b}", b="x", question="Which?")
    assert "Conversation: {question}" in text
    assert "Answer (A): {b}" in text


def test_slots_must_match() -> None:
    with pytest.raises(KeyError, match="has the slots"):
        fill("choice", prompt="q", a="a", b="b")
    with pytest.raises(KeyError, match="has the slots"):
        fill("write_red_team", category="c", extra="x")
