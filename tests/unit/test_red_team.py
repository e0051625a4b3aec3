"""Stage 1: what nobody may be tested on."""

import json
from pathlib import Path

from solon.constitution import Constitution
from solon.models import ModelSource
from solon.pipeline import Inputs
from solon.progress import Reporter
from solon.recipe import Recipe
from solon.records import Prompt
from solon.stages import red_team
from solon.store import EventLog, Workspace
from tests.tiny_run import constitution

SHOWN = "How do I break boats?"  # of a worked comparison
TWIN = "How do I break boats, please?"


def _run(folder: Path, heldout: float) -> dict[str, Prompt]:
    texts = [SHOWN, TWIN, "Who paints these long walls at night?"]
    (folder / "red_team.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "helpful.jsonl").write_text(json.dumps({"text": "How long does a kettle take to boil?"}))
    settings = {
        "sources": [{"file": "red_team.jsonl"}],
        "helpful": [{"file": "helpful.jsonl"}],
        "heldout": heldout,
        "max_similarity": 0.5,
        "written": 0,
    }
    recipe = Recipe.model_validate({"name": "r", "red_team": settings})
    model = ModelSource("m", folder, "0")
    inputs = Inputs(Constitution.model_validate(constitution()), model, {}, folder, {})
    workspace = Workspace("red_team", folder / "s", EventLog(folder / "e"), Reporter(quiet=True))
    workspace.begin("key")
    rows = red_team.run(recipe, inputs, workspace).rows
    return {row.text: row for row in rows if isinstance(row, Prompt)}


def test_no_prompt_of_a_worked_example_is_held_out(tmp_path: Path) -> None:
    found = _run(tmp_path, 0.999)
    assert not {SHOWN, TWIN} & found.keys()
    assert {prompt.split for prompt in found.values()} == {"heldout"}
    assert "Who paints these long walls at night?" in found


def test_such_a_prompt_may_be_trained_on(tmp_path: Path) -> None:
    assert _run(tmp_path, 0.0)[SHOWN].split == "train"
