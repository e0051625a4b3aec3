"""Rows as columns: equal to the list they stand for, however they are sliced; and memory that stays flat."""

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.engines.scripted import ScriptedEngine
from solon.errors import RunError
from solon.progress import Reporter
from solon.recipe import Recipe
from solon.records import Prompt, PromptKind, Split, Written
from solon.stages import sample
from solon.stages.common import choose, choose_fresh
from solon.store import EventLog, StageResult, Workspace, read_rows, write_rows
from solon.tables import Rows


def _prompt(text: str, kind: PromptKind = "red_team", split: Split = "train") -> Prompt:
    return Prompt(origin="file:x", text=text, kind=kind, split=split)


@settings(deadline=None)
@given(st.lists(st.text(max_size=5), max_size=12), st.data())
def test_rows_are_the_list_they_stand_for(texts: list[str], data: st.DataObject) -> None:
    plain = [_prompt(text) for text in texts]
    rows = Rows.of(plain, Prompt)
    cut = data.draw(st.slices(len(plain)))
    assert (list(rows), len(rows), list(rows[cut])) == (plain, len(plain), plain[cut])
    assert rows.column("text") == texts
    some = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=5)) if plain else []
    assert list(rows.take(some)) == [plain[i] for i in some]
    assert list(rows.take(some)[1:]) == [plain[i] for i in some][1:]
    assert [rows[i] for i in some] == [plain[i] for i in some]


def test_a_value_of_another_type_is_told_when_its_row_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, Prompt, [_prompt("a")])
    table = pq.read_table(path)
    kinds = pa.array(["no kind"])
    pq.write_table(table.set_column(table.schema.get_field_index("kind"), "kind", kinds), path)
    rows = read_rows(path, Prompt)
    with pytest.raises(RunError, match=r"rows\.parquet: a row cannot be read .*Remove its folder"):
        rows[0]


def test_prompts_are_chosen_by_kind_and_split_whatever_their_order() -> None:
    prompts = [_prompt(f"{k}{s}{i}", k, s) for k in _KINDS for s in _SPLITS for i in range(6)]
    chosen = choose(prompts, "train", {"red_team": 4, "helpful": 2}, seed=1)
    assert [(p.kind, p.split) for p in chosen] == [("red_team", "train")] * 4 + [("helpful", "train")] * 2
    assert list(choose(prompts[::-1], "train", {"red_team": 4, "helpful": 2}, seed=1)) == list(chosen)
    assert list(choose(prompts, "train", {"red_team": 4, "helpful": 2}, seed=2)) != list(chosen)
    with pytest.raises(RunError, match="there is no heldout prompt of kind helpful"):
        choose(prompts[:6], "heldout", {"helpful": 1}, seed=1)


def test_prompts_that_fine_tuning_has_learned_from_come_last() -> None:
    prompts = [_prompt(f"{k}{i}", k) for k in _KINDS for i in range(6)]
    recipe = Recipe.model_validate({"name": "r", "seed": 1, "revise": {"prompts": 4, "helpful": 9}})
    first = choose(prompts, "train", {"red_team": 4}, seed=1)
    fresh = choose_fresh(recipe, prompts, {"red_team": 3})
    assert not set(first) & set(fresh[:2]), "two of six are left"
    assert fresh[2] == first[0], "then from the beginning"
    assert len(choose_fresh(recipe, prompts, {"red_team": 99})) == 6
    every = choose(prompts, "train", {"helpful": 6}, seed=1)
    assert list(choose_fresh(recipe, prompts, {"helpful": 6})) == list(every), "it has learned from all"


_KINDS: tuple[PromptKind, ...] = ("red_team", "helpful")
_SPLITS: tuple[Split, ...] = ("train", "heldout")


class _Counting(ScriptedEngine):
    """How many requests are handed over at once."""

    most = 0

    def generate(self, requests):  # type: ignore[no-untyped-def]
        self.most = max(self.most, len(requests))
        return super().generate(requests)


def _peak(folder: Path, count: int) -> int:
    """The most bytes that Python held while so many prompts went through the stage `sample` to the disk."""
    engine = _Counting(lambda request: f"An answer to {request.conversation[-1].content}.")
    folder.mkdir(parents=True)
    write_rows(folder / "prompts.parquet", Prompt, (_prompt(f"question {i}") for i in range(count)))
    recipe = Recipe.model_validate({"name": "r", "sample": {"answers": 2, "batch": 50}})
    workspace = Workspace("sample", folder / "s", EventLog(folder / "events.jsonl"), Reporter(quiet=True))
    workspace.begin("key")
    tracemalloc.start()
    rows = read_rows(folder / "prompts.parquet", Prompt)
    prompts = choose(rows, "train", {"red_team": count}, 0)
    answers = sample.answers(recipe, prompts, engine, workspace)
    manifest = workspace.finish("key", Written, StageResult(answers), 0.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest.rows == 2 * count
    assert engine.most == 100
    return peak


def test_memory_does_not_grow_with_the_answers(tmp_path: Path) -> None:
    """Of 2,000 more prompts with two answers each a list of the rows would hold 7 megabytes."""
    _peak(tmp_path / "warm", 50)
    few = _peak(tmp_path / "few", 500)
    many = _peak(tmp_path / "many", 2500)
    assert many - few < 2000 * 600


def test_rows_of_a_batch_are_on_the_disk_before_the_next_begins(tmp_path: Path) -> None:
    workspace = Workspace("s", tmp_path / "s", EventLog(tmp_path / "events.jsonl"), Reporter(quiet=True))
    workspace.begin("key")
    journal = tmp_path / "s" / "working.jsonl"

    def work(items: object) -> list[Prompt]:
        seen.append(journal.read_text().count("\n") if journal.exists() else 0)
        return [_prompt(str(items))]

    seen: list[int] = []
    rows = workspace.batches([("a", [1]), ("b", [2]), ("c", [3])], Prompt, work, "prompts", int)
    assert seen == [0, 1, 2]
    assert [p.text for p in rows] == ["[1]", "[2]", "[3]"] == [p.text for p in rows]
    assert workspace.finish("key", Prompt, StageResult(rows), 0.0).rows == 3
