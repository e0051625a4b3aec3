"""Memory while prompts stream through a stage: 100, 10,000, 100,000 through `sample`, with a scripted engine.

Run: python bench/stream.py

Each size runs in a process of its own: prompts are read from Parquet, two answers of thirty words each are
journalled batch by batch and frozen. The figure is the peak of the process for the most prompts, and
`kb_a_prompt` by how much it grows from the second size to the third, for each prompt more.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from record import peak_memory_mb, report

from solon.engines.scripted import ScriptedEngine
from solon.progress import Reporter
from solon.recipe import Recipe
from solon.records import Prompt, Written
from solon.stages.common import choose
from solon.stages.sample import answers
from solon.store import EventLog, StageResult, Workspace, read_rows, write_rows

NEXT_TO_NONE, FEW, MANY = 100, 10_000, 100_000
ANSWER = " ".join(f"word{i}" for i in range(30))


def stream(folder: Path, count: int) -> None:
    """Prints the peak memory in MB."""
    given = (
        Prompt(origin="bench", text=f"What is the {i}th question about?", kind="red_team", split="train")
        for i in range(count)
    )
    write_rows(folder / "prompts.parquet", Prompt, given)
    recipe = Recipe.model_validate({"name": "bench", "sample": {"answers": 2, "batch": 64}})
    workspace = Workspace("sample", folder / "s", EventLog(folder / "events.jsonl"), Reporter(quiet=True))
    workspace.begin("bench")
    prompts = choose(read_rows(folder / "prompts.parquet", Prompt), "train", {"red_team": count}, 0)
    rows = answers(recipe, prompts, ScriptedEngine(lambda request: ANSWER), workspace)
    manifest = workspace.finish("bench", Written, StageResult(rows), 0.0)
    assert manifest.rows == 2 * count
    print(peak_memory_mb("cpu"))


def measured(count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder, str(count)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stream(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        none, few, many = measured(NEXT_TO_NONE), measured(FEW), measured(MANY)
        growth = round(1024 * (many - few) / (MANY - FEW), 2)
        more = {"of_100": none, "of_a_tenth": few, "kb_a_prompt": growth, "prompts": MANY}
        report("stream", "peak_memory_mb", many, None, None, **more)
