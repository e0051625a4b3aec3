"""Prompts from every format: a round trip, every fault with its line, and random bytes."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import ProblemsError, UsageError
from solon.prompt_files import RawPrompt, read_prompts
from solon.recipe import Source

PROMPTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


def _csv(rows: list[dict[str, str]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["text", "category"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _parquet(rows: list[dict[str, str]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    ".jsonl": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(),
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".csv": _csv,
    ".parquet": _parquet,
}


def write(folder: Path, name: str, content: bytes | str) -> Source:
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return Source(file=name)


def faults(source: Source, beside: Path, max_words: int = 200) -> list[tuple[int | None, str]]:
    with pytest.raises(ProblemsError) as caught:
        read_prompts(source, beside, max_words)
    assert all(problem.file.endswith(source.file) and problem.fix for problem in caught.value.problems)
    return [(problem.line, problem.what) for problem in caught.value.problems]


@pytest.mark.parametrize("suffix", [*WRITERS, *(f"{suffix}.gz" for suffix in WRITERS)])
@settings(deadline=None, max_examples=30)
@given(texts=st.lists(PROMPTS, min_size=1, max_size=5))
def test_every_format_gives_back_what_was_written(suffix: str, texts: list[str]) -> None:
    rows = [{"text": text, "category": f"c{i}"} for i, text in enumerate(texts)]
    with TemporaryDirectory() as name:
        source = write(Path(name), f"set{suffix}", WRITERS[suffix.removesuffix(".gz")](rows))
        found = read_prompts(source, Path(name), 200)
    assert [(prompt.text, prompt.category) for prompt in found] == [
        (text.strip(), f"c{i}") for i, text in enumerate(texts)
    ]


def test_plain_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    source = write(tmp_path, "set.txt", "\ufeffHow: so?\r\n\n  Why\u2028now? \n")
    file = str(tmp_path / "set.txt")
    assert read_prompts(source, tmp_path, 9) == [
        RawPrompt("How: so?", "", file, 1),
        RawPrompt("Why\u2028now?", "", file, 3),
    ]


def test_a_json_list_of_strings_knows_its_lines(tmp_path: Path) -> None:
    source = write(tmp_path, "set.json", '\n[\n"One, [two]?",\n\n "Three?"\n, "Four\\n?"]\n')
    assert [(prompt.line, prompt.text) for prompt in read_prompts(source, tmp_path, 9)] == [
        (3, "One, [two]?"),
        (5, "Three?"),
        (6, "Four\n?"),
    ]


def test_csv_skips_comments_before_the_header_and_counts_lines_inside_quotes(tmp_path: Path) -> None:
    text = '# version 1\n# "quoted\nid,goal\n1,"two\nlines, # kept"\n\n2,# not a comment\n'
    write(tmp_path, "set.csv", text)
    source = Source(file="set.csv", column="goal", category="id")
    assert [(p.line, p.category, p.text) for p in read_prompts(source, tmp_path, 9)] == [
        (4, "1", "two\nlines, # kept"),
        (7, "2", "# not a comment"),
    ]


def test_every_fault_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    lines = [
        b'{"text": "fine"}',
        b'{"text": "cut off',
        b'{"text": " "}',
        b'{"text": 7}',
        b'{"text": "caf\xe9"}',
        b'{"text": "one two three four"}',
        b'{"txet": "spelt"}',
        b"[1]",
        b'{"text": "\\ud800"}',
        b'{"text": "a", "text": "b"}',
        b'{"text": "a", "category": ["b"]}',
    ]
    found = faults(write(tmp_path, "set.jsonl", b"\n".join(lines)), tmp_path, 3)
    assert [line for line, _ in found] == list(range(2, 12))
    said = ("malformed", "empty", "int", "UTF-8", "4 words", "`txet`", "list", "no text", "twice", "category")
    for (_, what), word in zip(found, said, strict=True):
        assert word in what


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_a_missing_column_is_one_fault_that_names_the_closest(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "category": "x"}, {"text": "b", "category": "y"}]
    write(tmp_path, f"set{suffix}", WRITERS[suffix](rows))
    source = Source(file=f"set{suffix}", column="texts")
    with pytest.raises(ProblemsError) as caught:
        read_prompts(source, tmp_path, 9)
    (problem,) = caught.value.problems
    assert "`texts`; there are `text`, `category`" in problem.what
    assert "Did you mean `text`?" in problem.fix


def test_a_category_may_lack_unless_the_recipe_names_it(tmp_path: Path) -> None:
    write(tmp_path, "set.jsonl", '{"text": "a", "topic": 3}\n{"text": "b", "topic": null}')
    assert [p.category for p in read_prompts(Source(file="set.jsonl"), tmp_path, 9)] == ["", ""]
    named = Source(file="set.jsonl", category="topic")
    assert [p.category for p in read_prompts(named, tmp_path, 9)] == ["3", ""]
    assert "`topics`" in faults(Source(file="set.jsonl", category="topics"), tmp_path)[0][1]


@pytest.mark.parametrize(
    ("name", "content", "line", "what"),
    [
        ("set.jsonl", "", None, "no prompts"),
        ("set.csv", "text\n", None, "no prompts"),
        ("set.json", '{"text": "a"}', 1, "no JSON list"),
        ("set.json", '[\n"a",\n]', 3, "malformed JSON"),
        ("set.jsonl", "[" * 100_000, 1, "nested too deeply"),
        ("set.csv", 'text\n"a\nb', 2, "malformed CSV"),
        ("set.csv", "text,b\na,b\na\n", 3, "has 1 values"),
        ("set.csv", "text,text\na,b\n", 1, "stands twice"),
        ("set.parquet", "PAR1 no PAR1", None, "no readable Parquet"),
        ("set.txt", b"fine\n\xff\xfe", 2, "not UTF-8"),
        ("set.csv.gz", "text\n\n \n", 3, "empty"),
    ],
)
def test_faults_of_a_file(
    name: str, content: str | bytes, line: int | None, what: str, tmp_path: Path
) -> None:
    found = faults(write(tmp_path, name, content), tmp_path)
    assert [(found_line, what in text) for found_line, text in found] == [(line, True)]


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    for name, word in (("set.xml", "format is unknown"), ("set", "format is unknown")):
        with pytest.raises(UsageError, match=word):
            read_prompts(write(tmp_path, name, "a"), tmp_path, 9)
    (tmp_path / "set.txt.gz").write_bytes(gzip.compress(b"abc" * 99)[:-9])
    with pytest.raises(UsageError, match="no whole gzip file"):
        read_prompts(Source(file="set.txt.gz"), tmp_path, 9)
    with pytest.raises(UsageError, match="no such file"):
        read_prompts(Source(file="absent.jsonl"), tmp_path, 9)


def test_column_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    source = write(tmp_path, "set.jsonl", '{"\\u001b[2J\\ud800": "a"}')
    (_, what), *_ = faults(source, tmp_path)
    assert not re.search("[\x1b\ud800]", what)


@pytest.mark.parametrize("suffix", [*WRITERS, ".txt", ".jsonl.gz", ".parquet.gz"])
@settings(deadline=None, max_examples=60)
@given(raw=st.binary(max_size=80), at=st.integers(0, 400))
def test_random_bytes_give_rows_or_a_usage_error(suffix: str, raw: bytes, at: int) -> None:
    write_rows = WRITERS.get(suffix.removesuffix(".gz"))
    valid = write_rows([{"text": "a", "category": "b"}]) if write_rows else b"a"
    with TemporaryDirectory() as name:
        for content in (raw, valid[:at] + raw + valid[at + len(raw) :]):
            (Path(name) / f"set{suffix}").write_bytes(content)
            source = Source(file=f"set{suffix}")
            if suffix.endswith(".gz") and content is not raw:
                source = write(Path(name), f"set{suffix}", content)
            try:
                found = read_prompts(source, Path(name), 9)
            except UsageError:
                continue
            assert all(prompt.text.strip() == prompt.text != "" for prompt in found)
