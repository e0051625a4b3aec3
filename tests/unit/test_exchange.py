"""Constitutions from and to other formats: real shapes read by hand, round trips, and every fault at once."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from typer.testing import CliRunner

from solon import cli
from solon.constitution import (
    Constitution,
    Demonstrations,
    Principle,
    Revised,
    Text,
    dump,
    load_constitution,
)
from solon.errors import ProblemsError, UsageError
from solon.exchange import FORMATS, export_constitution, import_constitution

SUFFIX = {name: ".csv" if name == "csv" else ".json" for name in FORMATS}
WORDINGS = ("critique", "revision", "question")

REVISIONS = {
    "harmful0": {
        "prompt": ["\n\nCritiqueRequest: Say where it is rude.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Make it polite.\n\nRevision:",
    },
    "harmful1": {
        "prompt": "CritiqueRequest: Say where it is false.",
        "edit_request": "Make it true.\n\nRevision:",
    },
}
COMPARISONS = [
    "\nWhich answer is more polite? Options:",
    "Consider the following conversation between a human and an assistant:\n"
    "[HUMAN/ASSISTANT CONVERSATION]\n\nWhich answer is truer?\nOptions:\n"
    " (A) [RESPONSE A]\n (B) [RESPONSE B]\nThe answer is:",
]


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


RUDE = chat("Hi", "What.", "Say where it is rude.", "It is curt.", "Make it polite.", "Hello!")
HUGGINGFACE = {
    "constitutions": [
        {"critic": "Say where it is rude.", "revision": "Make it polite."},
        {"critic": "Say where it is false.", "revision": "Make it true."},
    ],
    "system_chat": [
        RUDE,
        chat("Hi", "What.", "Another request.", "It is curt.", "Make it polite.", "Hello!"),
        chat("Why?", "So.", "And?", "Because.", *[turn["content"] for turn in RUDE[2:]]),
    ],
}
STATEMENTS = (
    'Rule,Topic\n"Be kind, always.",manners\nTell the truth about things that you know little of.,facts\n'
)


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def imported(
    folder: Path, *contents: tuple[str, Any], format_: str | None = None
) -> tuple[Constitution, str]:
    """The constitution, which must survive its own YAML, and the notes."""
    found, notes = import_constitution([write(folder, *one) for one in contents], "mine", format_)
    again = load_constitution(write(folder, "again.yaml", dump(found)))
    assert again == found
    assert again.digest == found.digest
    assert "worked comparisons" in notes[-1]
    return found, "\n".join(notes)


def wordings(found: Constitution, *fields: str) -> list[tuple[str, ...]]:
    return [tuple(getattr(p, field) for field in fields) for p in found.principles]


def faults(folder: Path, name: str, content: Any, format_: str | None = None) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        import_constitution([write(folder, name, content)], "mine", format_)
    assert all(p.file == str(folder / name) and p.fix for p in caught.value.problems)
    return [f"{p.line or ''}:{p.what}" for p in caught.value.problems]


# --- each format by hand ------------------------------------------------------------------------------


def test_revisions_of_the_paper(tmp_path: Path) -> None:
    found, notes = imported(tmp_path, ("r.json", REVISIONS))
    assert wordings(found, "id", "critique", "revision", "about", "purpose") == [
        ("harmful0", "Say where it is rude.", "Make it polite.", "Say where it is rude.", "training"),
        ("harmful1", "Say where it is false.", "Make it true.", "Say where it is false.", "evaluation"),
    ]
    assert all(p.critique in p.question for p in found.principles)
    assert "derived from what the files give: 2 questions" in notes
    assert "held back for evaluation, as no file gives purposes: `harmful1`" in notes
    assert found.description == "Imported from r.json."


def test_comparisons_of_the_paper(tmp_path: Path) -> None:
    found, notes = imported(tmp_path, ("c.json", COMPARISONS))
    assert wordings(found, "id", "question") == [
        ("which-answer-is-more-polite", "Which answer is more polite?"),
        ("which-answer-is-truer", "Which answer is truer?"),
    ]
    assert all(p.question in p.critique and p.question in p.revision for p in found.principles)
    assert "2 critiques, 2 revisions" in notes


def test_revisions_and_comparisons_are_matched_in_order(tmp_path: Path) -> None:
    found, notes = imported(tmp_path, ("c.json", COMPARISONS), ("r.json", REVISIONS))
    assert wordings(found, "id", "critique", "question") == [
        ("harmful0", "Say where it is rude.", "Which answer is more polite?"),
        ("harmful1", "Say where it is false.", "Which answer is truer?"),
    ]
    assert "2 revisions and 2 comparisons were matched in their order" in notes
    assert "derived" not in notes


def test_unequal_counts_are_not_matched(tmp_path: Path) -> None:
    found, notes = imported(tmp_path, ("r.json", REVISIONS), ("c.json", COMPARISONS[:1]))
    assert [p.id for p in found.principles] == ["harmful0", "harmful1", "which-answer-is-more-polite"]
    assert "revisions (2) and comparisons (1) were not matched" in notes
    assert "1 critique, 1 revision, 2 questions" in notes


def test_huggingface_with_its_chats(tmp_path: Path) -> None:
    found, notes = imported(tmp_path, ("h.json", HUGGINGFACE))
    assert wordings(found, "critique", "revision") == [
        ("Say where it is rude.", "Make it polite."),
        ("Say where it is false.", "Make it true."),
    ]
    shown = Revised(
        principle="say-where-it-is-rude",
        prompt="Hi",
        answer="What.",
        critique="It is curt.",
        revision="Hello!",
    )
    assert found.demonstrations.revisions == (shown,)
    assert "left out 1 of 3 chats (8 turns)" in notes
    assert "left out 1 worked revision with requests that are no principle's" in notes


def test_huggingface_in_its_other_shapes(tmp_path: Path) -> None:
    pairs = HUGGINGFACE["constitutions"]
    one_row = {"constitutions": pairs, "system_chat": RUDE + RUDE, "made_by": "us"}
    found, notes = imported(tmp_path, ("row.json", one_row))
    assert len(found.demonstrations.revisions) == 2
    assert "left out the keys `made_by`" in notes
    bare, _ = imported(tmp_path, ("bare.json", pairs))
    assert bare.principles == found.principles
    held = {"constitutions": pairs[::-1], "system_chat": [RUDE]}
    assert "1 worked revision for evaluation principles" in imported(tmp_path, ("held.json", held))[1]


def test_statements(tmp_path: Path) -> None:
    found, notes = imported(tmp_path, ("s.csv", STATEMENTS))
    kind, truth = found.principles
    assert (kind.id, kind.about) == ("be-kind-always", "Be kind, always.")
    assert (truth.about, truth.purpose) == ("Tell the truth about things that…", "evaluation")
    assert kind.critique == (
        "Name every place where your last answer does not keep to this: Be kind, always."
    )
    assert all("Be kind, always." in getattr(kind, field) for field in WORDINGS)
    assert "left out the columns `Topic`" in notes


def test_statements_with_what_a_row_may_add(tmp_path: Path) -> None:
    text = (
        "ID,about,text,weight,purpose,question\n"
        "Be Nice,manners,Be nice.,2.5,Evaluation,Which is nicer?\n"
        "truth,,Be true.,,,\n"
    )
    found, notes = imported(tmp_path, ("s.csv", text))
    nice, truth = found.principles
    assert (nice.id, nice.about, nice.weight, nice.purpose) == ("be-nice", "manners", 2.5, "evaluation")
    assert nice.question == "Which is nicer?"
    assert (truth.id, truth.weight, truth.purpose) == ("truth", 1.0, "training")
    assert "`Be Nice` is now `be-nice`" in notes
    assert "1 principle without a purpose, now for training" in notes


def test_a_single_column_may_have_any_name(tmp_path: Path) -> None:
    found, notes = imported(tmp_path, ("s.csv", "Our values\nBe kind.\nBe true.\n"))
    assert [p.about for p in found.principles] == ["Be kind.", "Be true."]
    assert "the first line, `Our values`, was read as the column's name" in notes
    one, said = imported(tmp_path, ("one.csv", "rule\nBe kind.\n"))
    assert one.principles[0].purpose == "training"
    assert "no principle is for evaluation" in said


def test_a_fifth_is_held_back(tmp_path: Path) -> None:
    found, _ = imported(tmp_path, ("s.csv", "rule\n" + "".join(f"Rule {i}.\n" for i in range(16))))
    assert [p.id for p in found.of("evaluation")] == ["rule-13", "rule-14", "rule-15"]


def test_repeats_are_dropped_or_told_apart(tmp_path: Path) -> None:
    again = {"prompt": "Say where it is cold.", "edit_request": "Make it polite."}
    data = {**REVISIONS, "twin": REVISIONS["harmful0"], "half": again, "Half": {**again, "prompt": "Again."}}
    found, notes = imported(tmp_path, ("r.json", data))
    assert [p.id for p in found.principles] == ["harmful0", "harmful1", "half", "half-2"]
    assert found.principles[2].revision == "Make it polite. Keep this in mind as well: Say where it is cold."
    assert "dropped what stands already, word for word:" in notes
    assert "`twin`" in notes
    assert "the revision of `half`, the revision of `half-2`" in notes
    assert "`Half` is now `half-2`" in notes


def test_texts_without_latin_letters_get_ids(tmp_path: Path) -> None:
    found, _ = imported(tmp_path, ("s.csv", "rule\n友善待人。\nÊtre honnête.\n诚实。\n"))
    assert [p.id for p in found.principles] == ["principle", "etre-honnete", "principle-2"]


# --- recognition and faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {}),
        ("a.json", []),
        ("a.json", ["Be kind."]),
        ("a.json", {"name": "mine", "principles": []}),
        ("a.yaml", "name: mine\nprinciples: []\n"),
        ("a.txt", "Be kind.\n"),
    ],
)
def test_other_files_are_not_recognised(name: str, content: Any, tmp_path: Path) -> None:
    (problem,) = faults(tmp_path, name, content)
    assert "not recognised" in problem


def test_a_given_format_is_believed(tmp_path: Path) -> None:
    found, _ = imported(tmp_path, ("a.json", ["Which is kinder?"]), format_="paper-comparisons")
    assert wordings(found, "question") == [("Which is kinder?",)]
    assert faults(tmp_path, "a.json", REVISIONS, "huggingface") == [":the file holds no list `constitutions`"]
    assert faults(tmp_path, "a.json", REVISIONS, "paper-comparisons") == [
        ":the file holds an object, not a list"
    ]


def test_every_fault_of_revisions_at_once(tmp_path: Path) -> None:
    data = {
        "a": {"prompt": [], "edit_request": 7},
        "b": {"prompt": ["CritiqueRequest:\n\nCritique:"], "edit_request": "x" * 20_001},
        "c": {"prompt": [None]},
        "d": "text",
        "e": {"prompt": ["one", "two"], "edit_request": "\ud800"},
    }
    assert faults(tmp_path, "r.json", data) == [
        ":`a.prompt` holds 0 texts, not one",
        ":`a.edit_request` is a number, not a string",
        ":`b.prompt` is empty",
        ":`b.edit_request` has more than 20,000 characters",
        ":`c.prompt` is null, not a string",
        ":`c.edit_request` is missing",
        ":`d` is a string, not an object",
        ":`e.prompt` holds 2 texts, not one",
        ":`e.edit_request` is no text",
    ]


def test_every_fault_of_the_others_at_once(tmp_path: Path) -> None:
    assert faults(tmp_path, "c.json", ["Which? Options:", "Options:", 3, "[CONVERSATION]\nOptions:"]) == [
        ":`[1]` is empty",
        ":`[2]` is a number, not a string",
        ":`[3]` is empty",
    ]
    data = {"constitutions": [{"critic": True}, []], "system_chat": [[{"role": "user"}], "x"]}
    assert faults(tmp_path, "h.json", data) == [
        ":`constitutions[0].revision` is missing",
        ":`constitutions[0].critic` is true or false, not a string",
        ":`constitutions[1]` is a list, not an object",
        ":`system_chat[0][0]` is no turn of a chat",
        ":`system_chat[1][0]` is no turn of a chat",
    ]
    text = "rule,weight,purpose\nBe kind.,nan,train\n ,,\nBe true.,1e999,\nBe\n"
    assert faults(tmp_path, "s.csv", text) == [
        "2:`weight` is `nan`, not a number above 0",
        "2:`purpose` is `train`",
        "3:the row is empty",
        "4:`weight` is `1e999`, not a number above 0",
        "5:the row has 1 values and the header names 3 columns",
    ]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", b'{"a": {"prompt": NaN}}', "malformed JSON (NaN is no JSON)"),
        ("a.json", b'{"a": {"prompt": "b", "prompt": "c"}}', "the key `prompt` stands twice"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'{"a": {"prompt": \n}', "2:malformed JSON"),
        ("a.csv", "a,b\nc,d\n", "none of the columns `a`, `b` holds the statements"),
        ("a.csv", "rule,Text\nc,d\n", "`rule` and `Text` both hold the statement"),
        ("a.csv", "critique,revision\nc,d\n", "none of the columns"),
        ("a.csv", "rule;weight\nc;1\n", "none of the columns `rule;weight`"),
        ("a.csv", "question\nWhich?\n", "none of the columns `question` holds"),
        ("a.csv", "rule\n", "holds no principles"),
        ("a.csv", "", "holds no principles"),
        ("a.csv", b"rule\ncaf\xe9\n", "2:this is not UTF-8 text"),
        ("a.csv", "rule,purpose\nBe kind.,evaluation\n", "no principle is for training"),
        ("a.csv", "rule\n" + "x" * 20_001, "has more than 20,000 characters"),
        ("a.csv", "rule\n" + "x" * 200_000, "malformed CSV"),
    ],
)
def test_files_that_are_refused(name: str, content: Any, what: str, tmp_path: Path) -> None:
    (problem,) = faults(tmp_path, name, content)
    assert what in problem


def test_a_text_that_grows_too_long_is_refused(tmp_path: Path) -> None:
    found = faults(tmp_path, "a.csv", "rule\n" + "x" * 20_000)
    assert len(found) == 3
    assert all("is too long once it is filled in" in problem for problem in found)


def test_a_wrong_file_does_not_fill_the_screen(tmp_path: Path) -> None:
    found = faults(tmp_path, "a.json", ["Which? Options:", *range(500)])
    assert len(found) == 21
    assert found[-1] == ":and 480 more"


def test_files_and_names_that_cannot_be(tmp_path: Path) -> None:
    good = write(tmp_path, "r.json", REVISIONS)
    calls: list[tuple[list[Path], str, str | None, str]] = [
        ([tmp_path / "absent.json"], "mine", None, "absent"),
        ([tmp_path], "mine", None, "Check the path"),
        ([write(tmp_path, "u.json", b'["caf\xe9 Options:"]')], "mine", None, "not UTF-8"),
        ([good], "My Rules", None, "small letters"),
        ([good], "mine", "xml", "paper-revisions, paper-comparisons, huggingface, csv"),
        ([good], "mine", "csv", "ends in .csv"),
        ([], "mine", None, "no file"),
    ]
    for files, name, format_, word in calls:
        with pytest.raises(UsageError, match=word):
            import_constitution(files, name, format_)
    with pytest.raises(UsageError, match="paper-revisions, paper-comparisons, huggingface, csv"):
        export_constitution(load_constitution("harmless"), "xml")


def test_faults_of_several_files_come_together_and_cannot_steer_the_terminal(tmp_path: Path) -> None:
    a = write(tmp_path, "a.json", {"\x1b[2J": {"prompt": 1}})
    b = write(tmp_path, "b.csv", "rule,weight\nBe kind.,\x1b[2J\n")
    with pytest.raises(ProblemsError) as caught:
        import_constitution([a, tmp_path / "b.csv"], "mine", None)
    assert {p.file for p in caught.value.problems} == {str(a), str(b)}
    assert "\x1b" not in str(caught.value)


# --- round trips --------------------------------------------------------------------------------------

# U+0085 becomes a line break in a constitution's YAML, and so in an import.
_ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85"), max_size=60)
_NASTY = st.lists(
    st.sampled_from(
        [
            "CritiqueRequest:",
            "Critique:",
            "RevisionRequest:",
            "Revision:",
            "Options:",
            "[HUMAN/ASSISTANT CONVERSATION]",
            "{conversation}",
            "(A) [a] (B) [b]",
            '"',
            "'",
            ",",
            "\n",
            "\r\n",
            "\u2028",
            "=1+1",
            "#",
            "\\",
            "{statement}",
            " ",
        ]
    ),
    max_size=8,
).map("".join)
TEXTS = (
    st.one_of(_ANY, _NASTY, st.tuples(_NASTY, _ANY).map("".join))
    .filter(str.strip)
    .map(TypeAdapter(Text).validate_python)
)


@st.composite
def constitutions(draw: st.DrawFn) -> Constitution:
    """Two to four principles, no wording twice, and a worked revision for each."""
    count = draw(st.integers(2, 4))
    texts = {f: draw(st.lists(TEXTS, min_size=count, max_size=count, unique=True)) for f in WORDINGS}
    ids = draw(
        st.lists(
            st.from_regex(r"[a-z0-9][a-z0-9_-]{0,12}", fullmatch=True),
            min_size=count,
            max_size=count,
            unique=True,
        )
    )
    weights = st.floats(1e-6, 1e6)
    principles = tuple(
        Principle(
            id=ids[i],
            about=draw(TEXTS),
            weight=draw(weights),
            purpose="training" if i == 0 else draw(st.sampled_from(["training", "evaluation"])),
            **{f: texts[f][i] for f in WORDINGS},
        )
        for i in range(count)
    )
    parts = ("prompt", "answer", "critique", "revision")
    worked = tuple(Revised(principle=name, **{part: draw(TEXTS) for part in parts}) for name in ids)
    shown = Demonstrations(revisions=worked)
    return Constitution(name="mine", version="1", principles=principles, demonstrations=shown)


def _shown(found: Constitution) -> list[tuple[str, ...]]:
    place = {p.id: p.critique for p in found.principles}
    return [
        (place[r.principle], r.prompt, r.answer, r.critique, r.revision)
        for r in found.demonstrations.revisions
    ]


KEPT: dict[str, Callable[[Constitution], object]] = {
    "paper-revisions": lambda found: wordings(found, "id", "critique", "revision"),
    "paper-comparisons": lambda found: wordings(found, "question"),
    "huggingface": lambda found: (wordings(found, "critique", "revision"), _shown(found)),
    "csv": lambda found: found.principles,
}


@pytest.mark.parametrize("format_", FORMATS)
@settings(deadline=None, max_examples=60)
@given(constitution=constitutions())
def test_an_export_gives_back_what_its_format_holds(format_: str, constitution: Constitution) -> None:
    text = export_constitution(constitution, format_)
    with TemporaryDirectory() as name:
        content = ("file" + SUFFIX[format_], text.encode())
        found, _ = imported(Path(name), content)
        named, _ = imported(Path(name), content, format_=format_)
    assert found == named
    assert KEPT[format_](found) == KEPT[format_](constitution)


@pytest.mark.parametrize("name", ["harmless", "pharmacy"])
@pytest.mark.parametrize("format_", FORMATS)
def test_shipped_constitutions_go_out_and_in(name: str, format_: str, tmp_path: Path) -> None:
    constitution = load_constitution(name)
    text = export_constitution(constitution, format_)
    found, notes = imported(tmp_path, ("file" + SUFFIX[format_], text))
    assert KEPT[format_](found) == KEPT[format_](constitution)
    assert not {"left out", "dropped", "extended"} & set(notes.split())


def test_an_export_has_the_shape_of_the_original(tmp_path: Path) -> None:
    found, _ = imported(tmp_path, ("c.json", COMPARISONS), ("r.json", REVISIONS))
    assert json.loads(export_constitution(found, "paper-revisions"))["harmful0"] == REVISIONS["harmful0"]
    assert json.loads(export_constitution(found, "paper-comparisons"))[0] == COMPARISONS[0]
    data = json.loads(export_constitution(found, "huggingface"))
    assert data == {"constitutions": HUGGINGFACE["constitutions"], "system_chat": []}
    header, first, *_ = export_constitution(found, "csv").splitlines()
    assert header == '"id","about","critique","revision","question","weight","purpose","asked_on"'
    assert first.startswith('"harmful0","Say where it is rude.","Say where it is rude.","Make it polite.",')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["prompt", "edit_request", "constitutions", "system_chat", "critic", "revision"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("format_", [None, *FORMATS])
@settings(deadline=None, max_examples=60)
@given(data=JSON, raw=st.binary(max_size=60))
def test_hostile_files_give_a_constitution_or_a_usage_error(
    format_: str | None, data: Any, raw: bytes
) -> None:
    with TemporaryDirectory() as name:
        for file, content in (("a.json", data), ("b.json", raw), ("c.csv", raw), ("d.csv", b"rule\n" + raw)):
            try:
                imported(Path(name), (file, content), format_=format_)
            except UsageError:
                continue


# --- the commands -------------------------------------------------------------------------------------


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["constitution", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_commands_import_and_export(tmp_path: Path) -> None:
    files = [write(tmp_path, "r.json", REVISIONS), write(tmp_path, "c.json", COMPARISONS)]
    out = tmp_path / "mine.yaml"
    said = run("import", *files, "--out", out, "--name", "ours")
    assert "2 principles" in said
    assert "Note: 2 revisions and 2 comparisons were matched" in said
    assert load_constitution(out).name == "ours"
    for format_ in FORMATS:
        target = tmp_path / f"{format_}{SUFFIX[format_]}"
        run("export", out, "--format", format_, "--out", target)
        run("import", target, "--out", tmp_path / f"{format_}.yaml")
        assert KEPT[format_](load_constitution(tmp_path / f"{format_}.yaml")) == KEPT[format_](
            load_constitution(out)
        )


def test_a_faulty_import_writes_nothing_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(tmp_path, "c.json", ["Options:"]), tmp_path / "mine.yaml"
    monkeypatch.setattr(sys, "argv", ["solon", "constitution", "import", str(file), "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert f"{file}: `[0]` is empty. Write its text" in capsys.readouterr().err
    assert not out.exists()


def test_the_page_shows_a_real_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/exchange.md").read_text(encoding="utf-8")
    sheet = page.partition("```csv\n")[2].partition("```")[0]
    command, _, said = page.partition("$ solon constitution ")[2].partition("```")[0].partition("\n")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "house.csv", sheet)
    assert run(*command.split()) == said
