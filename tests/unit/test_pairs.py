"""Pairs with a known better answer: every format, every reason to leave one out, every fault, real data."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.engines.base import Message, user
from solon.errors import ProblemsError, UsageError
from solon.feedback.pair_formats import DIFFER, EMPTY, FormatError, parts
from solon.feedback.pairs import EQUAL, NO_QUESTION, KnownPair, read_pairs

HH = Path(__file__).parents[3] / "shared" / "data" / "preferences" / "hh_harmless.jsonl.gz"

H, A = "\n\nHuman: ", "\n\nAssistant: "
TRL = {"prompt": "How: so?", "chosen": "Like this.", "rejected": "Like that."}
OPTIONS = "\n\nOptions:\n (A) [[[Go: home]]]\n (B) [[[Stay\n\nhere]]]\n\nThe answer is:"
HHH: dict[str, Any] = {"prompt": f"Where to?{OPTIONS}", "corrects": [" (B)"], "incorrects": [" (A)"]}
CONVERSATION = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def read(folder: Path, *records: object, limit: int | None = None) -> tuple[list[KnownPair], dict[str, int]]:
    file = folder / "set.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return read_pairs(file, limit)


def one(folder: Path, **record: object) -> tuple[object, str, str]:
    (pair,), left_out = read(folder, record)
    assert not left_out
    assert pair.source == "set.jsonl:1"
    return pair.conversation, pair.chosen, pair.rejected


def reason(folder: Path, **record: object) -> str:
    pairs, left_out = read(folder, record)
    assert not pairs
    ((why, count),) = left_out.items()
    assert count == 1
    return why


def faults(folder: Path, *records: object) -> list[tuple[int | None, str]]:
    with pytest.raises(ProblemsError) as caught:
        read(folder, *records)
    problems = caught.value.problems
    assert all(problem.file == str(folder / "set.jsonl") and problem.fix for problem in problems)
    return [(problem.line, problem.what) for problem in problems]


# --- files --------------------------------------------------------------------------------------------


def _csv(rows: list[dict[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".jsonl", lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        (".json", lambda rows: json.dumps(rows, indent=1).encode()),
        (".csv", _csv),
        (".parquet", _parquet),
    ],
)
def test_every_kind_of_file(tmp_path: Path, suffix: str, write: Any, zipped: bool) -> None:
    rows = [{**TRL, "id": "x"}, {**TRL, "prompt": "Why?", "id": "y"}]
    file = tmp_path / f"set{suffix}{'.gz' if zipped else ''}"
    file.write_bytes(gzip.compress(write(rows)) if zipped else write(rows))
    pairs, left_out = read_pairs(file)
    assert [(p.conversation, p.chosen, p.rejected) for p in pairs] == [
        (user("How: so?"), "Like this.", "Like that."),
        (user("Why?"), "Like this.", "Like that."),
    ]
    assert not left_out


def test_parquet_holds_turns_and_lists_of_options(tmp_path: Path) -> None:
    conversational = {
        "prompt": [turn("user", "Hi")],
        "chosen": [turn("assistant", "Hello")],
        "rejected": [turn("assistant", "No")],
    }
    for name, row, expected in [
        ("turns", conversational, (user("Hi"), "Hello", "No")),
        ("options", HHH, (user("Where to?"), "Stay\n\nhere", "Go: home")),
    ]:
        (tmp_path / f"{name}.parquet").write_bytes(_parquet([row]))
        ((pair,), _) = read_pairs(tmp_path / f"{name}.parquet")
        assert (pair.conversation, pair.chosen, pair.rejected) == expected


def test_parquet_fills_the_gaps_of_mixed_records_with_null(tmp_path: Path) -> None:
    transcripts = {"prompt": None, "chosen": f"{H}a{A}b", "rejected": f"{H}a{A}c"}
    (tmp_path / "set.parquet").write_bytes(_parquet([TRL, transcripts]))
    pairs, _ = read_pairs(tmp_path / "set.parquet")
    assert [pair.prompt for pair in pairs] == ["How: so?", "a"]


def test_formats_may_be_mixed_and_lines_are_right(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    transcripts = {"chosen": f"{H}a{A}b", "rejected": f"{H}a{A}c"}
    file.write_text(f"{json.dumps(TRL)}\n\n{json.dumps(transcripts)}\n{json.dumps(HHH)}\n")
    pairs, _ = read_pairs(file)
    assert [(p.source, p.prompt) for p in pairs] == [
        (f"{file.name}:1", "How: so?"),
        (f"{file.name}:3", "a"),
        (f"{file.name}:4", "Where to?"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.jsonl", "", "holds no records. Add some"),
        ("set.jsonl", "\n \n", "holds no records"),
        ("set.json", "[]", "holds no records"),
        ("set.csv", "prompt,chosen,rejected\n", "holds no records"),
        ("set.csv", "goal,target\n", "no pairs in its columns `goal`, `target`. Write `prompt`"),
        ("set.xlsx", "x", "this format is unknown"),
    ],
)
def test_a_file_without_records(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


def test_a_parquet_file_without_the_columns_says_which_it_has(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").write_bytes(_parquet([{"goal": "x"}]))
    with pytest.raises(UsageError, match="no pairs in its columns `goal`"):
        read_pairs(tmp_path / "set.parquet")


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_pairs(tmp_path / "set.jsonl")


def test_the_limit_counts_pairs_and_ends_the_reading(tmp_path: Path) -> None:
    empty = {**TRL, "chosen": ""}
    pairs, left_out = read(tmp_path, empty, TRL, TRL, empty, {"broken": 1}, limit=2)
    assert [pair.source[-1] for pair in pairs] == ["2", "3"]
    assert left_out == {EMPTY: 1}


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing(tmp_path: Path, limit: int) -> None:
    with pytest.raises(UsageError, match="Give 1 or more"):
        read(tmp_path, TRL, limit=limit)


# --- a prompt and two answers -------------------------------------------------------------------------


def test_prompt_and_history(tmp_path: Path) -> None:
    turns = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    ((pair,), _) = read(tmp_path, {**TRL, "prompt": turns})
    assert pair.conversation == CONVERSATION
    assert (pair.history, pair.prompt) == (CONVERSATION[:2], "c")


@pytest.mark.parametrize(
    ("prompt", "chosen", "expected"),
    [
        ("  How\n\nso? ", " a: b\n", (user("How\n\nso?"), "a: b")),
        ("Human: say Assistant: x", "a", (user("Human: say Assistant: x"), "a")),
        ([turn("user", "q")], [turn("assistant", " a")], (user("q"), "a")),
        ([turn("user", "q")], "a", (user("q"), "a")),
        (
            [turn("system", "s"), turn("user", "q")],
            "a",
            ((Message("system", "s"), Message("user", "q")), "a"),
        ),
        # the question again in front of the answer, as in UltraFeedback
        ("q", [turn("user", "q"), turn("assistant", "a")], (user("q"), "a")),
        # a transcript that the assistant is to continue
        (f"{H}a{A}b{H}c{A}", "a", (CONVERSATION, "a")),
        # no such transcript: it has an answer, or something before it
        (f"{H}a{A}b", "a", (user("Human: a\n\nAssistant: b"), "a")),
        (f"x{H}a{A}", "a", (user("x\n\nHuman: a\n\nAssistant:"), "a")),
    ],
)
def test_a_prompt_and_two_answers(tmp_path: Path, prompt: object, chosen: object, expected: Any) -> None:
    assert one(tmp_path, prompt=prompt, chosen=chosen, rejected="no") == (*expected, "no")


# --- two transcripts ----------------------------------------------------------------------------------


def test_transcripts_that_share_all_but_the_last_answer(tmp_path: Path) -> None:
    start = f"{H}a{A}b{H}c"
    assert one(tmp_path, chosen=f"{start}{A}d", rejected=f"{start} {A}e\n") == (CONVERSATION, "d", "e")


def test_a_transcript_may_lack_its_first_blank_line(tmp_path: Path) -> None:
    assert one(tmp_path, chosen=f"Human: a{A}b", rejected=f"{H}a{A}c") == (user("a"), "b", "c")


def test_transcripts_split_at_their_markers_only(tmp_path: Path) -> None:
    question = "Say: Human: x\nAssistant: y\n\nHumans: z\n\n human: Assistant: u"
    found = one(tmp_path, chosen=f"{H}{question}{A}One: two\n\nthree", rejected=f"{H}{question}{A}c")
    assert found == (user(question), "One: two\n\nthree", "c")


def test_turns_of_one_speaker_in_a_row_are_one(tmp_path: Path) -> None:
    start = f"{H}a{H}b{A}c{A}d{H}{H}e"
    expected = (Message("user", "a\n\nb"), Message("assistant", "c\n\nd"), Message("user", "e"))
    assert one(tmp_path, chosen=f"{start}{A}f{A}g", rejected=f"{start}{A}f") == (expected, "f\n\ng", "f")


def test_an_unanswered_last_word_is_dropped(tmp_path: Path) -> None:
    assert one(tmp_path, chosen=f"{H}a{A}b{H}c", rejected=f"{H}a{A}d") == (user("a"), "b", "d")


def test_transcripts_as_turns(tmp_path: Path) -> None:
    chosen, rejected = ([turn("user", "q"), turn("assistant", said)] for said in "ab")
    assert one(tmp_path, chosen=chosen, rejected=rejected) == (user("q"), "a", "b")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (f"{H}a{A}b", f"{H}c{A}d"),
        (f"{H}a{A}b{H}c{A}d", f"{H}a{A}x{H}c{A}e"),
        (f"{H}a{A}b{H}c{A}d", f"{H}a{A}b{H}x{A}d"),
        (f"{H}a{A}b{H}c{A}d", f"{H}a{A}e"),
        (f"{A}a{H}b{A}c", f"{A}x{H}b{A}d"),
    ],
)
def test_transcripts_that_part_before_the_last_answer(tmp_path: Path, chosen: str, rejected: str) -> None:
    assert reason(tmp_path, chosen=chosen, rejected=rejected) == DIFFER
    assert reason(tmp_path, chosen=rejected, rejected=chosen) == DIFFER


# --- a question with two options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "conversation"),
    [
        ("Where to?", user("Where to?")),
        (f"{H}a{A}b{H}c{A}", CONVERSATION),
        (f"Human: a{A}b{H}c{A}", CONVERSATION),
        (f"Which is best?{H}a{A}b{H}c{A}", CONVERSATION),
        # the conversation is the matter of the question: one turn
        (f"Read:{H}a{A}b\n\nWhich fits?", user("Read:\n\nHuman: a\n\nAssistant: b\n\nWhich fits?")),
        ("Few: (A) [[[x]]]\n (B) [[[y]]]\n\nNow?", user("Few: (A) [[[x]]]\n (B) [[[y]]]\n\nNow?")),
        ("My Options:", user("My Options:")),
    ],
)
@pytest.mark.parametrize("texts", [{}, {"text_correct": "Stay\n\nhere", "text_incorrect": "Go: home"}])
def test_the_part_before_the_options(tmp_path: Path, stem: str, conversation: Any, texts: Any) -> None:
    found = one(tmp_path, **{**HHH, "prompt": stem + OPTIONS}, **texts)
    assert found == (conversation, "Stay\n\nhere", "Go: home")


def test_options_without_their_heading(tmp_path: Path) -> None:
    prompt = HHH["prompt"].replace("Options:\n", "")
    assert one(tmp_path, **{**HHH, "prompt": prompt})[0] == user("Where to?")


def test_the_correct_option_may_stand_first_and_in_a_string(tmp_path: Path) -> None:
    found = one(tmp_path, **{**HHH, "corrects": "(A)", "incorrects": "(B)"})
    assert found[1:] == ("Go: home", "Stay\n\nhere")


def test_full_texts_stand_for_shortened_options(tmp_path: Path) -> None:
    found = one(tmp_path, **HHH, text_correct="Stay with us", text_incorrect=f"{H}a{A}Go home now")
    assert found == (user("Where to?"), "Stay with us", "Go home now")


def test_full_texts_stand_for_empty_options_and_are_cut_only_if_whole_transcripts(tmp_path: Path) -> None:
    record = {**HHH, "prompt": "Where to? (A) [[[]]] (B) [[[]]]"}
    found = one(tmp_path, **record, text_correct="Stay", text_incorrect=f"Say:{H}a{A}Go")
    assert found == (user("Where to?"), "Stay", "Say:\n\nHuman: a\n\nAssistant: Go")


def test_full_transcripts_tell_the_conversation(tmp_path: Path) -> None:
    start = f"{H}a{A}b{H}c{A}"
    found = one(tmp_path, **HHH, text_correct=f"{start}Stay\n\nhere", text_incorrect=f"{start}Go: home")
    assert found == (CONVERSATION, "Stay\n\nhere", "Go: home")


def test_texts_that_hold_the_matter_of_the_question_end_in_the_option(tmp_path: Path) -> None:
    start = f"{H}a{A}b\n\nWhich fits? "
    found = one(tmp_path, **HHH, text_correct=f"{start}Stay\n\nhere", text_incorrect=f"{start}Go: home")
    assert found == (user("Where to?"), "Stay\n\nhere", "Go: home")


# --- what is left out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({**TRL, "chosen": " \n"}, EMPTY),
        ({**TRL, "rejected": ""}, EMPTY),
        ({**TRL, "chosen": "", "rejected": ""}, EMPTY),
        ({"chosen": f"{H}a{A} ", "rejected": f"{H}a{A}b"}, EMPTY),
        ({"chosen": f"{H}a{A}b", "rejected": f"{H}a"}, EMPTY),
        ({"chosen": "", "rejected": f"{H}a{A}b"}, EMPTY),
        ({**HHH, "prompt": "x (A) [[[]]] (B) [[[y]]]"}, EMPTY),
        ({**TRL, "chosen": "x", "rejected": " x\n"}, EQUAL),
        ({"chosen": f"{H}a{A}b", "rejected": f"{H}a{A} b"}, EQUAL),
        ({**HHH, "prompt": "x (A) [[[y]]] (B) [[[y]]]"}, EQUAL),
        ({**TRL, "prompt": " "}, NO_QUESTION),
        ({"chosen": f"{H}{A}b", "rejected": f"{H}{A}c"}, NO_QUESTION),
        ({**HHH, "prompt": OPTIONS}, NO_QUESTION),
    ],
)
def test_reasons_to_leave_a_record_out(tmp_path: Path, record: Any, expected: str) -> None:
    assert reason(tmp_path, **record) == expected


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    empty, equal = {**TRL, "chosen": ""}, {**TRL, "chosen": TRL["rejected"]}
    pairs, left_out = read(tmp_path, empty, equal, TRL, empty)
    assert len(pairs) == 1
    assert left_out == {EMPTY: 2, EQUAL: 1}


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ("text", "the record is a str, not an object"),
        (["text"], "the record is a list, not an object"),
        ({}, "the record has no `chosen` and `rejected`, nor `corrects`"),
        ({"prompt": "x"}, "the record has no `chosen` and `rejected`, nor `corrects`"),
        ({"prompt": "x", "chosen": "y"}, "`rejected` is missing"),
        ({"prompt": "x", "rejected": "y"}, "`chosen` is missing"),
        ({**TRL, "chosen": None}, "`chosen` is missing"),
        ({**TRL, "chosen": 3}, "`chosen` is a int, not a string"),
        ({**TRL, "prompt": {"a": 1}}, "`prompt` is a dict, not a string"),
        ({**TRL, "prompt": "\ud800"}, "`prompt` is no text"),
        ({**TRL, "prompt": []}, "`prompt` does not end in a user's turn"),
        ({**TRL, "prompt": [turn("assistant", "x")]}, "`prompt` does not end in a user's turn"),
        (
            {**TRL, "prompt": [turn("human", "x")]},
            "a turn of `prompt` has no role among system, user, assistant",
        ),
        ({**TRL, "prompt": ["x"]}, "a turn of `prompt` has no role among system, user, assistant"),
        ({**TRL, "prompt": [{"role": "user"}]}, "`prompt[].content` is a NoneType, not a string"),
        ({**TRL, "chosen": []}, "`chosen` is not one turn of the assistant"),
        ({**TRL, "chosen": [turn("user", "x")]}, "`chosen` is not one turn of the assistant"),
        ({**TRL, "chosen": [turn("assistant", "x")] * 2}, "`chosen` is not one turn of the assistant"),
        ({"chosen": f"{H}a{A}b"}, "`rejected` is missing"),
        ({"chosen": "x", "rejected": f"{H}a{A}b"}, "`chosen` is no transcript, and there is no `prompt`"),
        (
            {"chosen": f"{H}a{A}b", "rejected": f"x{H}a{A}b"},
            "`rejected` is no transcript, and there is no `prompt`",
        ),
        ({**HHH, "prompt": None}, "`prompt` is missing"),
        ({**HHH, "prompt": "x (A) yes (B) no"}, "`prompt` does not end in the options (A) and (B)"),
        ({**HHH, "prompt": "x (A) [[[y]]]"}, "`prompt` does not end in the options (A) and (B)"),
        (
            {**HHH, "prompt": "x (A) [[[y]]] (B) [[[z"},
            "`prompt` does not end in the options (A) and (B)",
        ),
        ({**HHH, "incorrects": None}, "`incorrects` is missing"),
        ({**HHH, "corrects": ["(C)"]}, "`corrects` does not name one of two options"),
        ({**HHH, "corrects": ["(A)", "(B)"]}, "`corrects` does not name one of two options"),
        ({**HHH, "corrects": 1}, "`corrects` does not name one of two options"),
        ({**HHH, "incorrects": ["(B)"]}, "`corrects` and `incorrects` name the same option"),
        ({**HHH, "text_correct": 1}, "`text_correct` is a int, not a string"),
        (
            {**HHH, "text_correct": "Go: home"},
            "`text_correct` and `text_incorrect` contradict `corrects` and `incorrects`",
        ),
        (
            {**HHH, "text_incorrect": "Stay\n\nhere"},
            "`text_correct` and `text_incorrect` contradict `corrects` and `incorrects`",
        ),
    ],
)
def test_faults_name_their_line(tmp_path: Path, record: object, what: str) -> None:
    assert faults(tmp_path, TRL, record) == [(2, what)]


def test_all_faults_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(f'"x"\n{json.dumps(TRL)}\n{{"chosen": \n{{"prompt": "x", "chosen": 1}}\n')
    with pytest.raises(ProblemsError) as caught:
        read_pairs(file)
    assert [problem.line for problem in caught.value.problems] == [1, 3, 4]


def test_a_wrong_file_does_not_flood_the_screen(tmp_path: Path) -> None:
    found = faults(tmp_path, *[{"goal": "x"}] * 50)
    assert [line for line, _ in found] == [*range(1, 21), None]
    assert found[-1][1] == "and 30 more"


# --- any text, and real data --------------------------------------------------------------------------

PIECES = st.lists(
    st.sampled_from(
        ["\n\nHuman:", "\n\nAssistant:", "(A) [[[", "]]]\n (B) [[[", "]]]", " ", "\n", "x", "Options:"]
    )
    | st.text(max_size=5),
    max_size=12,
).map("".join)


@given(chosen=PIECES, rejected=PIECES, prompt=PIECES | st.none(), corrects=st.sampled_from(["(A)", None]))
def test_any_texts_are_a_pair_or_a_reason_or_a_fault(
    chosen: str, rejected: str, prompt: str | None, corrects: str | None
) -> None:
    record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    options = {"corrects": corrects, "incorrects": corrects and "(B)", "text_correct": chosen}
    try:
        found = parts(record | options)
    except FormatError:
        return
    if isinstance(found, str):
        assert found in (DIFFER, EMPTY)
        return
    conversation, *answers = found
    assert conversation[-1].role == "user"
    assert all(text == text.strip() for text in [*answers, *(said.content for said in conversation)])


SAID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(str.strip).filter(bool)


@given(
    said=st.lists(SAID, min_size=1, max_size=5).filter(lambda said: len(said) % 2 == 1),
    chosen=SAID,
    rejected=SAID,
)
def test_a_written_transcript_is_read_back(said: list[str], chosen: str, rejected: str) -> None:
    start = "".join(f"{(H, A)[i % 2]}{text}" for i, text in enumerate(said))
    found = parts({"chosen": f"{start}{A}{chosen}", "rejected": f"{start}{A}{rejected}"})
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(said))
    assert found == (turns, chosen, rejected)


@pytest.mark.skipif(not HH.is_file(), reason="the human preferences (shared/data/preferences) are absent")
def test_human_preferences() -> None:
    pairs, left_out = read_pairs(HH)
    # Lines 38 and 462 have an empty answer; lines 640, 853 and 984 two turns of the assistant in a row.
    assert left_out == {EMPTY: 2}
    assert len(pairs) == 1160
    assert not {f"{HH.name}:38", f"{HH.name}:462"} & {pair.source for pair in pairs}
    for pair in pairs:
        roles = [said.role for said in pair.conversation]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert pair.chosen != pair.rejected
        assert pair.prompt
        assert not any(mark in text for text in (pair.chosen, pair.rejected) for mark in (H, A))
