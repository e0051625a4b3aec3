"""Constitutions: loading reports every fault at once, with its line and the fix."""

import random
from pathlib import Path

import pytest
import yaml

from solon import shipped
from solon.constitution import dump, load_constitution
from solon.errors import ProblemsError, UsageError
from solon.records import PromptKind
from tests import tiny_run

KINDS: tuple[PromptKind, ...] = ("red_team", "helpful")
SHIPPED = shipped.names("constitutions", ".yaml")


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_constitutions_load_and_round_trip(name: str, tmp_path: Path) -> None:
    constitution = load_constitution(name)
    again = load_constitution(_write(tmp_path, dump(constitution)))
    assert again == constitution
    assert again.digest == constitution.digest


def test_harmless_keeps_its_promises() -> None:
    harmless = load_constitution("harmless")
    training, evaluation = harmless.of("training"), harmless.of("evaluation")
    assert len(training) >= 16
    assert len(evaluation) >= 4
    assert len(harmless.comparisons("training")) >= 80
    for principle in training:
        count = sum(c.principle == principle.id for c in harmless.demonstrations.comparisons)
        assert count >= 3, principle.id
    flaws = {c.flaw for c in harmless.demonstrations.comparisons}
    assert {"harmful", "evasive", "preachy", "degenerate"} <= flaws


def test_length_does_not_tell_the_better_answer() -> None:
    """A judge taught by these comparisons must not learn that longer, or shorter, is better."""
    comparisons = load_constitution("harmless").demonstrations.comparisons
    longer = sum(len(c.better.split()) > len(c.worse.split()) for c in comparisons)
    assert 0.4 < longer / len(comparisons) < 0.6


def test_digest_changes_with_any_letter() -> None:
    constitution = load_constitution("harmless")
    first = constitution.principles[0]
    reworded = first.model_copy(update={"question": first.question + "?"})
    changed = constitution.model_copy(update={"principles": (reworded, *constitution.principles[1:])})
    assert changed.digest != constitution.digest


def test_all_faults_are_reported_with_lines(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        """name: bad
version: "1"
principles:
  - id: one
    about: a
    critique: c
    revision: r
    question: ""
    wieght: 2
  - id: two
    about: b
    revision: s
    question: q
""",
    )
    with pytest.raises(ProblemsError) as caught:
        load_constitution(path)
    found = {(p.line, p.what.split("`")[1]) for p in caught.value.problems}
    assert found == {(8, "principles.0.question"), (9, "principles.0.wieght"), (10, "principles.1.critique")}
    assert "Did you mean `weight`?" in str(caught.value)


def test_inconsistencies_are_reported_together(tmp_path: Path) -> None:
    data = tiny_run.constitution()
    data["principles"][1]["id"] = "p0"
    data["demonstrations"]["revisions"][0]["principle"] = "nobody"
    data["demonstrations"]["comparisons"][3]["worse"] = data["demonstrations"]["comparisons"][3]["better"]
    with pytest.raises(ProblemsError) as caught:
        load_constitution(_write(tmp_path, yaml.safe_dump(data, sort_keys=False)))
    message = str(caught.value)
    assert "two principles have the id `p0`" in message
    assert "there is no principle `nobody`" in message
    assert "better and worse are the same text" in message
    assert all(problem.line for problem in caught.value.problems)


def test_duplicate_key_is_no_silent_override(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match=r"c\.yaml:2: the key `name` stands here and on line 1"):
        load_constitution(_write(tmp_path, "name: a\nname: b\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no keys"),
        (b"- a\n- b\n", "holds no keys"),
        (b"name: [unclosed\n", "Check the indentation"),
        (b"name: caf\xe9\n", "not UTF-8"),
        (b"name: !!python/object/apply:os.system ['true']\n", "Check the indentation"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_constitution(path)


def test_absent_file_names_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match="Did you mean `harmless`"):
        load_constitution("harmles")


def test_draw_follows_weights(tmp_path: Path) -> None:
    data = tiny_run.constitution()
    data["principles"][0]["weight"] = 8.0
    constitution = load_constitution(_write(tmp_path, yaml.safe_dump(data, sort_keys=False)))
    rng = random.Random(0)
    drawn = [constitution.draw(rng).id for _ in range(2000)]
    # Weights 8, 1, 1 over the three training principles; evaluation principles are never drawn.
    assert set(drawn) == {"p0", "p1", "p2"}
    assert abs(drawn.count("p0") / 2000 - 0.8) < 0.03


def test_some_principles_alone_keep_their_own_examples() -> None:
    whole = load_constitution("harmless")
    some = whole.only(["cruelty", "vulnerable"])
    assert [p.id for p in some.principles] == ["cruelty", "vulnerable"]
    assert {c.principle for c in some.demonstrations.comparisons} == {"cruelty", "vulnerable"}
    assert {r.principle for r in some.demonstrations.revisions} == {"cruelty"}
    assert some.digest != whole.digest
    with pytest.raises(UsageError, match=r"no principle `cruely`\. Did you mean `cruelty`"):
        whole.only(["cruely"])


def test_principles_are_drawn_on_the_prompts_that_they_are_asked_on(tmp_path: Path) -> None:
    data = tiny_run.constitution()
    data["principles"][0]["asked_on"] = "red_team"
    data["principles"][1]["asked_on"] = "helpful"
    constitution = load_constitution(_write(tmp_path, yaml.safe_dump(data, sort_keys=False)))
    rng = random.Random(0)
    drawn = {kind: {constitution.draw(rng, kind=kind).id for _ in range(99)} for kind in KINDS}
    assert drawn == {"red_team": {"p0", "p2"}, "helpful": {"p1", "p2"}}
    assert {constitution.draw(rng).id for _ in range(99)} == {"p0", "p1", "p2"}


def test_a_kind_of_prompts_that_no_principle_is_asked_on_is_a_fault(tmp_path: Path) -> None:
    data = tiny_run.constitution()
    for principle in data["principles"][:3]:
        principle["asked_on"] = "red_team"
    with pytest.raises(ProblemsError, match="no training principle is asked on helpful prompts"):
        load_constitution(_write(tmp_path, yaml.safe_dump(data, sort_keys=False)))
