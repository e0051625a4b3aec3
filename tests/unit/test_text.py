"""Text measures, on cases worked by hand and on random texts."""

import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.text import (
    complete_sentences,
    copied_share,
    drop_near_duplicates,
    is_degenerate,
    jaccard,
    leading_sentences,
    says_enough,
    without_controls,
    word_ngrams,
    words,
)

COLOURS = ("red", "green", "blue", "one", "two", "three", "four")
SOME_WORDS = st.lists(st.sampled_from(COLOURS), max_size=9).map(" ".join)


def test_words_fold_case_and_keep_apostrophes() -> None:
    assert words("Don’t STOP, café-owner: 42!") == ["don't", "stop", "café", "owner", "42"]
    assert words("你好 abc") == ["你", "好", "abc"]
    assert words("… !? _") == []


def test_ngrams_and_jaccard_by_hand() -> None:
    assert word_ngrams("a b c a b", 2) == {("a", "b"), ("b", "c"), ("c", "a")}
    assert word_ngrams("a b", 3) == set()
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert jaccard(set(), set()) == 1.0
    assert jaccard({1}, set()) == 0.0


def test_copied_share_by_hand() -> None:
    assert copied_share("a b c d e", "x a b c y c d e") == pytest.approx(2 / 3)  # abc and cde, not bcd
    assert copied_share("a b", "a b") == 0.0  # too short to be a copy


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("!!! ??? ---", "not-words"),
        ("aaaaaaaaaaaaaaaaaaaaaa", "not-words"),
        ("{[<>]}" * 9 + "a", "not-words"),
        ("You should be kind to them. " * 4, "repetitive"),
        ("Be kind to each other.\n" * 5, "repetitive"),
        ("the cat and the cat and the cat and the cat and the cat and", "repetitive"),
        ("very " * 20, "repetitive"),
        ("It is bad. " + "no " * 30, "repetitive"),
        ("1. Fruit\n2. Fruit\n3. Fruit\n4. Fruit", "repetitive"),
        ("1. Fruit 2. Fruit 3. Fruit 4. Fruit", "repetitive"),
        ("- Ask a friend for help.\n- Ask a friend for help.\n- Ask a friend for help.", "repetitive"),
        ("Steps:\n1. Use a strong password for it.\n2. Use a strong password for it.", "repetitive"),
        ("Go home now and rest. Drink some warm water. " * 3, "repetitive"),
    ],
)
def test_degenerate(text: str, reason: str) -> None:
    assert is_degenerate(text) == reason


@pytest.mark.parametrize(
    "text",
    [
        "No.",
        "42",
        "Yes, yes!",
        "Row, row, row your boat, gently down the stream.",
        "1. Apples\n2. Pears\n3. Plums\n4. Apples",
        "1. True\n2. False\n3. True\n4. False\n5. True",
        "- Drink water.\n- Drink tea.\n- Drink juice.\n- Drink milk.",
        "Monday: rest\nTuesday: run\nWednesday: rest\nThursday: run\nFriday: swim",
        "for i in range(3):\n    for j in range(3):\n        print(grid[i][j])\n    print()\n",
        "if a:\n    return 1\nif b:\n    return 2\nif c:\n    return 3\nreturn 4",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "हिन्दी में लिखा हुआ एक वाक्य।",
        "今日はとても良い天気です。明日は雨が降るでしょう。",
        "I can't help with that, because it would hurt somebody. If you like, we can talk about it.",
        "Noooooooooooo, I did not know that it would end like this for the poor captain.",
        "10000000000000000",
    ],
)
def test_not_degenerate(text: str) -> None:
    assert is_degenerate(text) is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("First one. Second one. Third is cu", "First one. Second one."),
        ("All is well.", "All is well."),
        ("No end in sight", "No end in sight"),
        ('He said "Stop!" and then we', 'He said "Stop!"'),
        ("It is **done.** Then we", "It is **done.**"),
        ("Ask Dr. Smith and Mr. Jon", "Ask Dr. Smith and Mr. Jon"),
        ("Eat fruit, e.g. apples. Also try some fruits, e.g.", "Eat fruit, e.g. apples."),
        ("Read it. By J. K. Row", "Read it."),
        ("Pi is 3.14 and e is 2.71. So the", "Pi is 3.14 and e is 2.71."),
        ("Do this:\n1. First, wait.\n2. Then, go.\n3.", "Do this:\n1. First, wait.\n2. Then, go."),
        ("Do this:\n1. First, wait.\n2. Then, g", "Do this:\n1. First, wait."),
        ("Do this:\n1. First", "Do this:\n1. First"),
        ("Do this:\n1.", "Do this:"),
        ("Do this:\n- ", "Do this:"),
        ("Steps: 1. First do x. 2. Sec", "Steps: 1. First do x."),
        ("Steps: 1.", "Steps:"),
        ("Fruit:\n1. Apples\n2. Pears\n3. Pl", "Fruit:\n1. Apples\n2. Pears"),
        ("See these.\n- **Kinds**:\n- Pl", "See these."),
        ("The answer is 42", "The answer is 42"),
        ("He was there in 5. Then", "He was there in 5."),
        ("Well... Then we", "Well..."),
        ("明日は雨です。そして", "明日は雨です。"),
        ("1.", "1."),
        ("", ""),
    ],
)
def test_complete_sentences(text: str, kept: str) -> None:
    assert complete_sentences(text) == kept


@given(st.text(alphabet='aB1. \n-!?)"*:e.g', max_size=60) | st.text(max_size=60))
def test_complete_sentences_returns_a_beginning_and_never_nothing(text: str) -> None:
    kept = complete_sentences(text)
    assert text.startswith(kept)
    assert bool(kept.strip()) == bool(text.strip())


@pytest.mark.parametrize(
    ("text", "most", "kept"),
    [
        ("I can't help. Call 911. Be safe.", 2, "I can't help. Call 911."),
        ("I can't help. Call 911.", 3, "I can't help. Call 911."),
        # said again, word for word and nearly
        ("I'm not able to help. I'm not able to help. I'm", 3, "I'm not able to help."),
        (
            "It is illegal to build bombs. So it is illegal to build bombs. No.",
            3,
            "It is illegal to build bombs.",
        ),
        ("You can't. Ask him. You can't. Ask her.", 9, "You can't. Ask him."),
        # an unfinished end is not judged; a list's items are sentences
        ("No. It is", 2, "No. It is"),
        ("1. Buy eggs.\n2. Cook them.\n3. Eat.", 2, "1. Buy eggs.\n2. Cook them."),
        ("no end", 1, "no end"),
        ("", 1, ""),
    ],
)
def test_leading_sentences(text: str, most: int, kept: str) -> None:
    assert leading_sentences(text, most) == kept


@given(st.text(alphabet='aB1. \n-!?)"*:e.g', max_size=60), st.integers(1, 4))
def test_leading_sentences_are_a_beginning_and_stay_what_they_are(text: str, most: int) -> None:
    kept = leading_sentences(text, most)
    assert text.startswith(kept)
    assert bool(kept) == bool(text)
    assert leading_sentences(kept, most) == kept


@pytest.mark.parametrize(
    ("text", "most", "enough"),
    [
        ("No. Ask him.", 2, False),  # "him.com" may follow
        ("No. Ask him. ", 2, False),  # a closing quotation mark, or a sentence
        ("No. Ask him. S", 2, True),
        ("No. Ask him. S", 3, False),
        ("No. Ask him. No. W", 9, True),  # said again
        ("Pi is 3.", 1, False),
        ("1. Buy eggs.\n2", 1, True),
        ("", 1, False),
    ],
)
def test_says_enough(text: str, most: int, enough: bool) -> None:
    assert says_enough(text, most) == enough


@given(
    st.text(alphabet='aBU.S1 \n-!?)"*:。」', max_size=60),
    st.text(alphabet='aBU.S1 \n-!?)"*:。」', max_size=30),
    st.integers(1, 3),
)
def test_nothing_added_changes_what_says_enough(text: str, more: str, most: int) -> None:
    if says_enough(text, most):
        assert leading_sentences(text + more, most) == leading_sentences(text, most)


def test_near_duplicates_by_hand() -> None:
    texts = [
        "how do i bake a good loaf of bread",  # 7 trigrams
        "How do I bake a good loaf of bread?",  # the same words
        "how do i bake a good loaf of bread now",  # 7 of 8: similarity 0.875
        "how do i bake a good loaf of cake",  # 6 of 8: 0.75
        "who are you",
        "you are who",  # short texts are compared as sets of words
        "who are they",  # 2 of 4
        "?!",
        "?!",
        "!!",
    ]
    assert drop_near_duplicates(texts, 0.8) == [0, 3, 4, 6, 7, 9]
    assert drop_near_duplicates(texts, 0.7) == [0, 4, 6, 7, 9]
    assert drop_near_duplicates(texts, 1.0) == [0, 2, 3, 4, 6, 7, 9]  # equal ones always go


@given(st.lists(SOME_WORDS, max_size=12), st.sampled_from([0.2, 0.5, 0.6, 0.75, 1.0]))
def test_near_duplicates_agree_with_comparing_every_pair(texts: list[str], limit: float) -> None:
    def features(text: str) -> set[object]:
        found = words(text)
        if not found:
            return {text}
        return set(found) if len(found) < 5 else set(word_ngrams(text, 3))

    kept: list[int] = []
    for i, text in enumerate(texts):
        near = [jaccard(features(text), features(texts[j])) for j in kept]
        if not any(value > limit or value == 1 for value in near):
            kept.append(i)
    assert drop_near_duplicates(texts, limit) == kept


@given(st.lists(st.text(max_size=30) | SOME_WORDS, max_size=15), st.floats(0.05, 1.0))
def test_near_duplicates_are_a_subset_and_dropping_twice_drops_no_more(
    texts: list[str], limit: float
) -> None:
    kept = drop_near_duplicates(texts, limit)
    assert kept == sorted(set(kept) & set(range(len(texts))))
    left = [texts[i] for i in kept]
    assert drop_near_duplicates(left, limit) == list(range(len(left)))


@pytest.mark.slow
def test_fifty_thousand_texts_are_feasible() -> None:
    random = Random(0)
    common = [f"w{i}" for i in range(2000)]
    texts = ["how do i " + " ".join(random.choices(common, k=random.randint(1, 20))) for _ in range(50_000)]
    start = time.perf_counter()
    kept = drop_near_duplicates(texts, 0.6)
    assert time.perf_counter() - start < 60
    assert 0 < len(kept) < 50_000


def test_what_would_change_a_terminal_is_no_text() -> None:
    assert without_controls("a\x1b[31m\x07b") == "a\ufffd[31m\ufffdb"
    assert without_controls("a\tb\r\nc\n") == "a\tb\r\nc\n"
    assert without_controls("bad\r~ all fine") == "bad\ufffd~ all fine", "it would be written over"


def test_known_texts_are_all_looked_at_and_are_no_result() -> None:
    """b is nearly a, and c nearly b alone: a known b must not hide behind a known a."""
    a, b, c = (
        "one two three four five six",
        "two three four five six seven",
        "three four five six seven eight",
    )
    assert drop_near_duplicates([c], 0.5, [a, b]) == []
    assert drop_near_duplicates([c], 0.5, [a]) == [0]
    assert drop_near_duplicates([a, b, c], 0.5) == [0, 2]
