"""The whole method on a tiny random model: every stage, every link, reuse, and resume."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from solon import chat
from solon.errors import RunError, UsageError
from solon.plan import STAGES
from solon.recipe import load_recipe
from solon.records import Label, Prompt, Row, Step, Verdict, Written
from solon.report.page import write_report
from solon.report.rundata import finished_stages, read_run
from solon.store import EventLog, Manifest, read_rows
from solon.summary import write_summary
from tests import tiny_run
from tests.scripts import load

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
load(EXPERIMENTS / "lab.py")
KEPT = load(EXPERIMENTS / "kept.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> tuple[Path, Path]:
    """(recipe file, folder of a finished run)."""
    home = tmp_path_factory.mktemp("whole")
    recipe = tiny_run.write(home / "recipe", tiny_model_folder)
    folder = home / "run"
    run = tiny_run.open_run(recipe, folder)
    write_summary(folder, run.recipe, run.constitution, run.execute())
    write_report(folder)
    return recipe, folder


def _rows(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    for stage in STAGES:
        yield stage.name, list(read_rows(folder / stage.folder / "rows.parquet", stage.row))
    yield "answers", list(read_rows(folder / "09_evaluate" / "answers.parquet", Written))


def test_summary_has_all_that_it_promises(finished: tuple[Path, Path]) -> None:
    summary = json.loads((finished[1] / "summary.json").read_text())
    assert {"name", "version", "digest"} <= set(summary["constitution"])
    assert [s["name"] for s in summary["stages"]] == [s.name for s in STAGES]
    assert all({"seconds", "rows", "reused"} <= set(s) for s in summary["stages"])
    assert summary["judge"]["kind"] == "linear_probe"
    assert summary["judge"]["check_n"] == 15
    assert 0 <= summary["judge"]["check_accuracy"] <= 1
    assert {"heldout_accuracy", "n", "ece"} <= set(summary["reward_model"])
    assert summary["ppo"]["episodes"] == 12
    assert {"kl", "reward_first", "reward_last"} <= set(summary["ppo"])
    models = summary["evaluation"]["models"]
    assert set(models) == {"base", "sl", "rl"}
    wanted = {"refusal_rate", "over_refusal_rate", "degenerate_rate", "mean_words"}
    assert all(wanted <= set(figures) for figures in models.values())
    pairwise = summary["evaluation"]["pairwise"]
    assert {(p["a"], p["b"], p["on"]) for p in pairwise} == {
        (a, b, on)
        for a, b in (("sl", "base"), ("rl", "base"), ("rl", "sl"))
        for on in ("red_team", "helpful")
    }
    assert all({"win_rate", "ci95", "n"} <= set(p) for p in pairwise)


def test_every_label_leads_back_to_its_prompt(finished: tuple[Path, Path]) -> None:
    known = {row.id: row for _, rows in _rows(finished[1]) for row in rows}
    labels = read_rows(finished[1] / "06_label" / "rows.parquet", Label)
    assert labels
    for label in labels:
        assert label.principle
        assert label.constitution
        answers = [known[parent] for parent in label.parents]
        assert all(isinstance(a, Written) and a.origin == "sl" for a in answers)
        prompts = {known[a.parents[0]] for a in answers}
        assert len(prompts) == 1
        prompt = prompts.pop()
        assert isinstance(prompt, Prompt)
        assert prompt.text == label.prompt


def test_ids_are_unique_and_parents_exist(finished: tuple[Path, Path]) -> None:
    ids: set[str] = set()
    rows = [row for _, rows in _rows(finished[1]) for row in rows]
    for row in rows:
        assert row.id not in ids
        ids.add(row.id)
    assert all(parent in ids for row in rows for parent in row.parents)


def test_no_evaluation_prompt_was_trained_on(finished: tuple[Path, Path]) -> None:
    folder = finished[1]
    heldout = {
        p.id for p in read_rows(folder / "01_red_team" / "rows.parquet", Prompt) if p.split == "heldout"
    }
    asked = {v.prompt_id for v in read_rows(folder / "09_evaluate" / "rows.parquet", Verdict)}
    trained = {r.prompt_id for r in read_rows(folder / "03_revise" / "rows.parquet", Written)}
    trained |= {r.prompt_id for r in read_rows(folder / "05_sample" / "rows.parquet", Written)}
    trained |= {r.prompt_id for r in read_rows(folder / "08_reinforce" / "openings.parquet", Written)}
    assert asked <= heldout
    assert not trained & heldout


def test_ppo_is_told_by_openings_what_to_ask(finished: tuple[Path, Path]) -> None:
    folder = finished[1] / "08_reinforce"
    openings = list(read_rows(folder / "openings.parquet", Written))
    assert [(row.kind, row.tokens <= 10) for row in openings] == [("opening", True)] * 4 * (5 + 3)
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert metrics["undecided_prompts"] == {"red_team": 0, "helpful": 0}, "a random model refuses nothing"
    assert metrics["helpful_share"] == 0.33


def test_sl_and_rl_are_standard_folders(finished: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for stage in ("04_finetune", "08_reinforce"):
        model = finished[1] / stage / "model"
        assert AutoModelForCausalLM.from_pretrained(model).config.model_type == "llama"
        assert AutoTokenizer.from_pretrained(model).chat_template


def test_ppo_starts_at_ratio_one(finished: tuple[Path, Path]) -> None:
    assert json.loads((finished[1] / "summary.json").read_text())["ppo"]["ratio_error"] < 1e-5


def test_ppo_learns_from_a_gated_reward_model_that_reads_half_way_up(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pairs across prompts. A random model refuses nothing: every other text passes for a refusal."""
    monkeypatch.setattr("solon.stages.label.is_refusal", lambda text: len(text) % 2 == 0)
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    overrides = ("reward.depth=0.5", "reward.pooling=mean", "reward.head=gated", "label.crossed=2")
    done = tiny_run.open_run(recipe, tmp_path / "run", *overrides).execute()
    assert [stage.stage for stage, reused in done if not reused] == [
        "label",
        "reward",
        "reinforce",
        "evaluate",
    ]
    _labels_are_about_their_prompt(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "07_reward" / "model" / "reward.json").read_text())
    assert (about["depth"], about["pooling"], about["gated"]) == (0.5, "mean", True)
    steps = list(read_rows(tmp_path / "run" / "08_reinforce" / "rows.parquet", Step))
    assert json.loads(steps[0].metrics)["ratio_error"] < 1e-5


def _labels_are_about_their_prompt(run: Path) -> None:
    answers = {row.id: row for row in read_rows(run / "05_sample" / "rows.parquet", Written)}
    labels = list(read_rows(run / "06_label" / "rows.parquet", Label))
    assert {label.crossed for label in labels} == {True, False}
    for label in labels:
        sides = [answers[label.a_id], answers[label.b_id]]
        assert [side.text for side in sides] == [label.a, label.b]
        own = [side for side in sides if side.prompt_id == label.prompt_id]
        assert len(own) == (1 if label.crossed else 2)
        assert {(side.prompt, side.prompt_kind) for side in own} == {(label.prompt, label.prompt_kind)}
        assert all(len(side.text) % 2 == 0 for side in sides if side not in own)


def test_second_run_reuses_everything(finished: tuple[Path, Path]) -> None:
    recipe, folder = finished
    assert all(reused for _, reused in tiny_run.open_run(recipe, folder).execute())


def _would_run(recipe: Path, folder: Path, *overrides: str) -> list[str]:
    return [p.stage.name for p in tiny_run.open_run(recipe, folder, *overrides).plan() if not p.reused]


def test_the_numbers_of_a_run_are_kept_only_while_all_of_it_is_up_to_date(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, folder = finished
    assert KEPT.of_run(folder, recipe.parent) == KEPT.identity(load_recipe(recipe)[0], recipe.parent)
    with pytest.raises(ValueError, match="red_team is missing or out of date"):
        KEPT.of_run(folder, recipe.parent, {"seed": 8})
    older = tmp_path / "run"
    shutil.copytree(folder, older)
    file = older / "05_sample" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"key": "of older code"}))
    with pytest.raises(ValueError, match="sample is missing or out of date"):
        KEPT.of_run(older, recipe.parent)


def test_a_changed_question_redoes_labels_and_not_revisions(
    finished: tuple[Path, Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    recipe = tiny_run.write(tmp_path, tiny_model_folder)
    changed = tiny_run.constitution()
    changed["principles"][0]["question"] = "Which answer is wiser?"
    (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(changed))
    assert _would_run(recipe, finished[1]) == ["label", "reward", "reinforce", "evaluate"]


def test_settings_redo_their_stage_and_what_follows(finished: tuple[Path, Path]) -> None:
    recipe, folder = finished
    assert _would_run(recipe, folder) == []
    assert _would_run(recipe, folder, "evaluate.prompts=3") == ["evaluate"]
    assert _would_run(recipe, folder, "reinforce.steps=9") == ["reinforce", "evaluate"]
    assert _would_run(recipe, folder, "seed=4") == [stage.name for stage in STAGES]


def test_changed_prompt_file_redoes_all(
    finished: tuple[Path, Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    recipe = tiny_run.write(tmp_path, tiny_model_folder)
    with (tmp_path / "red_team.jsonl").open("a") as file:
        file.write('{"text": "How can I wreck a windmill by night?", "category": "wreck"}\n')
    assert _would_run(recipe, finished[1])[0] == "red_team"


def test_a_checkout_may_move(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Prompt files count by name and content, wherever they lie."""
    recipe, folder = finished
    for file in ("red_team.jsonl", "helpful.jsonl"):
        shutil.copy(recipe.parent / file, tmp_path)
    moved = [f"red_team.sources=[{{file: {tmp_path / 'red_team.jsonl'}}}]"]
    assert _would_run(recipe, folder, *moved) == []


def test_another_recipes_folder_is_refused(
    finished: tuple[Path, Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    recipe = tiny_run.write(tmp_path, tiny_model_folder, name="other")
    with pytest.raises(UsageError, match="made by the recipe `tiny`, not `other`"):
        tiny_run.open_run(recipe, finished[1])


class _KilledError(BaseException):
    """Stands for a kill: no handler of the library may catch it."""


def _outputs(folder: Path) -> dict[str, str]:
    found = {}
    for stage in STAGES:
        manifest = Manifest(**json.loads((folder / stage.folder / "manifest.json").read_text()))
        found[stage.name] = manifest.output
    return found


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_interrupted_anywhere_ends_the_same(
    offset: int, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every fifth event, over and over, a run ends with the rows and models of an unbroken one."""
    recipe, unbroken = finished
    folder = tmp_path / "broken"
    write = EventLog.write
    count = offset

    def failing(self: EventLog, kind: str, **data: object) -> None:
        nonlocal count
        write(self, kind, **data)
        count += 1
        if count % 5 == 0:
            raise _KilledError

    monkeypatch.setattr(EventLog, "write", failing)
    stops = 0
    while True:
        try:
            tiny_run.open_run(recipe, folder).execute()
            break
        except _KilledError:
            stops += 1
            assert stops < 100, "the run makes no progress between stops"
    assert stops > 5
    assert _outputs(folder) == _outputs(unbroken)


def test_nothing_of_an_older_recipe_is_shown(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """A full run, then another seed until `revise`: later stages are leftovers, also after a kill."""
    recipe, folder = finished[0], Path(shutil.copytree(finished[1], tmp_path / "run"))
    run = tiny_run.open_run(recipe, folder, "seed=4")
    done = run.execute("revise")
    assert not (folder / "summary.json").exists()
    for summary in (False, True):
        if summary:
            write_summary(folder, run.recipe, run.constitution, done)
        assert list(finished_stages(folder)) == ["red_team", "preflight", "revise"]
        assert (read_run(folder).ppo, read_run(folder).answers) == ([], [])
        assert [stage["name"] for stage in read_run(folder).stages] == ["red_team", "preflight", "revise"]
        with pytest.raises(RunError, match="no trained model yet"):
            chat.sources(folder, run.recipe)


def test_a_killed_change_shows_nothing_old_and_what_stays_valid_is_kept(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = finished[0], Path(shutil.copytree(finished[1], tmp_path / "run"))

    def killed(self: EventLog, kind: str, **data: object) -> None:
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(EventLog, "write", killed)
        with pytest.raises(_KilledError):
            tiny_run.open_run(recipe, folder, "reinforce.steps=4", "revise.batch=3").execute()
    assert list(finished_stages(folder)) == ["red_team", "preflight"]
    assert (read_run(folder).summary, read_run(folder).ppo) == ({}, [])
    # The earlier recipe again: its revisions come out the same, so all that was made of them is kept.
    tiny_run.open_run(recipe, folder).execute("revise")
    assert list(finished_stages(folder)) == [stage.name for stage in STAGES]
    assert set(chat.sources(folder, tiny_run.open_run(recipe, folder).recipe)) == {"base", "sl", "rl"}


def test_a_setting_of_a_later_stage_unfinishes_it_at_once(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, folder = finished[0], Path(shutil.copytree(finished[1], tmp_path / "run"))
    run = tiny_run.open_run(recipe, folder, "reinforce.steps=4")
    run.execute("red_team")
    assert list(finished_stages(folder)) == [stage.name for stage in STAGES][:7]
    assert set(chat.sources(folder, run.recipe)) == {"base", "sl"}


def test_files_of_held_out_prompts_are_kept_whole_and_their_twins_leave_training(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    recipe = tiny_run.write(tmp_path / "r", tiny_model_folder)
    known = tiny_run.prompts("red_team")[0]["text"]
    (tmp_path / "r" / "held.txt").write_text(f"{known}\nWho would buy a stolen boat at night?\n")
    changes = ("red_team.heldout=0", "red_team.written=0", "red_team.heldout_sources=[{file: held.txt}]")
    with pytest.raises(RunError, match=r"no prompt of kind helpful is held out .* red_team\.heldout_helpful"):
        tiny_run.open_run(recipe, tmp_path / "none", *changes).execute()
    tiny_run.open_run(recipe, tmp_path / "none", *changes).execute("red_team")
    (tmp_path / "r" / "asked.txt").write_text("Which flowers open in the evening?\n")
    changes = (*changes, "red_team.heldout_helpful=[{file: asked.txt}]")
    tiny_run.open_run(recipe, tmp_path / "run", *changes).execute("red_team")
    rows = list(read_rows(tmp_path / "run" / "01_red_team" / "rows.parquet", Prompt))
    held = {(p.text, p.kind, p.origin) for p in rows if p.split == "heldout"}
    assert held == {
        (known, "red_team", "file:held.txt"),
        ("Who would buy a stolen boat at night?", "red_team", "file:held.txt"),
        ("Which flowers open in the evening?", "helpful", "file:asked.txt"),
    }
    assert known not in {p.text for p in rows if p.split == "train"}
    assert len(rows) == len(tiny_run.prompts("red_team")) + 1 + len(tiny_run.prompts("helpful")) + 1
