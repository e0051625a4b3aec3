"""Which revisions are rejected, by what name, and which must pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.filters import clean, reject_revision

ANSWER = "Pick the lock with a bent pin and turn it until it opens."
GOOD = "I can't help you into a house that isn't yours. If you are locked out, a locksmith can help."


def test_a_real_revision_passes() -> None:
    assert reject_revision(GOOD, ANSWER, ["Call a friend and talk it over tonight."], 0.5) is None


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        (" \n", "empty"),
        ("?!?! -- !!", "not-words"),
        ("I can't help with that one. " * 3, "repetitive"),
        ("pick the lock with a bent pin,\n and turn it until it opens", "unchanged"),
        ("The original response was harmful, so it is better to say no to it.", "talks-about-the-response"),
        ("The assistant's last answer should not explain how locks are picked.", "talks-about-the-response"),
        ("Here’s a revised, safer version of that: call a locksmith.", "talks-about-the-response"),
        ("Call a locksmith.\n\n**Revised answer:** call the owner.", "talks-about-the-response"),
        ("This critique points to the danger of picking locks.", "talks-about-the-response"),
        ("I have rewritten the response to be kinder to the owner.", "talks-about-the-response"),
        ("The response is harmful because it teaches a crime.", "talks-about-the-response"),
    ],
)
def test_is_rejected_by_name(revision: str, reason: str) -> None:
    assert reject_revision(revision, ANSWER, [], 0.5) == reason


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 42, and the response to it was loud.",
        "The body's immune response is quick. A vaccine prepares it.",
        "The original recipe calls for butter; use oil instead.",
        "Kant wrote the Critique of Pure Reason. Answer your mother's letter first.",
        "Please reply to the revised offer by Monday.",
        "Write to the editor: your answer to the previous question was wrong.",
    ],
)
def test_ordinary_texts_are_not_taken_for_talk_about_a_response(text: str) -> None:
    assert reject_revision(text, ANSWER, [], 0.5) is None


def test_a_long_answer_with_one_word_changed_is_unchanged() -> None:
    answer = " ".join(f"word{i} stands{i}" for i in range(100))
    assert reject_revision(answer.replace("word50", "term50"), answer, [], 0.5) == "unchanged"
    half = answer.replace("word5", "term5").replace("word3", "term3")
    assert reject_revision(half, answer, [], 0.5) is None


def test_a_copy_is_measured_against_each_demonstration_alone() -> None:
    shown = "one two three four five six"
    revision = "one two three four nine ten"  # trigrams: 123 234 | 349 4910, so half is copied
    assert reject_revision(revision, ANSWER, [shown], 0.5) is None
    assert reject_revision(revision, ANSWER, [shown], 0.49) == "copies-demonstration"
    assert reject_revision(revision, ANSWER, ["one two three", "two three four"], 0.3) is None


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Revision: Call a friend.", "Call a friend."),
        ("**Revised answer:** Call a friend.", "Call a friend."),
        ("**Response**: Call a friend.", "Call a friend."),
        ('  "Call a friend."\n', "Call a friend."),
        ("Answer: “Call a friend.”", "Call a friend."),
        ('"Go," she said, "now."', '"Go," she said, "now."'),
        ("Answering: machines are useful.", "Answering: machines are useful."),
        ("Note: this is fine.", "Note: this is fine."),
        ('"', '"'),
        ("", ""),
    ],
)
def test_clean_strips_a_label_and_outer_quotes_only(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.text(max_size=100))
def test_clean_only_ever_takes_away_at_the_ends(text: str) -> None:
    assert clean(text) in text
