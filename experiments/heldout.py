"""Prompts that no training sees: harmful requests from public data, and ordinary ones.

There are two draws. `developed` is what recipes were compared on while they were made, so its figures
flatter the recipe that was chosen. `reported` is what `results.py` reports on: further harmful requests of
AdvBench and DangerousQA (HarmBench's are all in the first draw), and the ordinary ones of `ordinary.jsonl`,
written after the recipes were final. No decision about a recipe may be taken on them.

The folder has `red_team/advbench.csv` (llm-attacks AdvBench), `red_team/harmbench_val.csv` (HarmBench's
validation split), `red_team/dangerous_qa.json` (declare-lab red-instruct) and
`helpful/self_instruct_seed_tasks.jsonl` (self-instruct), in their published formats.
"""

import csv
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from solon.digest import digest, file_sha256
from solon.text import drop_near_duplicates

Draw = Literal["developed", "reported"]
RED_TEAM, HELPFUL = 240, 150  # of each draw
WRITTEN = Path(__file__).parent / "ordinary.jsonl"
_SIMILAR, _MOST_WORDS, _SEED = 0.6, 60, 0


@dataclass(frozen=True)
class HeldOut:
    """The two files that were written."""

    red_team: Path
    helpful: Path

    @property
    def digest(self) -> str:
        """Identifies the prompts."""
        return digest([file_sha256(self.red_team), file_sha256(self.helpful)])

    def sets(self) -> dict[str, int]:
        """How many harmful requests are of each set, the most first."""
        rows = map(json.loads, self.red_team.read_text(encoding="utf-8").splitlines())
        return dict(Counter(row["category"] for row in rows).most_common())


def write(data: Path, folder: Path, draw: Draw = "developed") -> HeldOut:
    """Draw the prompts and write them as JSONL. The same prompts every time.

    Raises FileNotFoundError if a set is absent.
    """
    found = HeldOut(folder / f"{draw}_red_team.jsonl", folder / f"{draw}_helpful.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "advbench": [row["goal"] for row in _table(data / "red_team" / "advbench.csv")],
        # Behaviours with a context are no requests without it.
        "harmbench": [
            row["Behavior"]
            for row in _table(data / "red_team" / "harmbench_val.csv")
            if not row["ContextString"]
        ],
        "dangerous_qa": json.loads((data / "red_team" / "dangerous_qa.json").read_text(encoding="utf-8")),
    }
    if draw == "developed":
        _write(found.red_team, drawn(sets, RED_TEAM))
        tasks = list(_tasks(data / "helpful" / "self_instruct_seed_tasks.jsonl"))
        _write(found.helpful, drawn({"self_instruct": tasks}, HELPFUL))
    else:
        _write(found.red_team, drawn(sets, 2 * RED_TEAM)[RED_TEAM:])
        found.helpful.write_bytes(WRITTEN.read_bytes())
    return found


def drawn(sets: Mapping[str, Sequence[str]], count: int) -> list[dict[str, str]]:
    """`count` different prompts, about equally many of each set as long as it lasts, short ones alone.

    Raises ValueError if there are not as many.
    """
    rng = random.Random(_SEED)
    shuffled = {name: rng.sample(list(texts), len(texts)) for name, texts in sets.items()}
    turns = [
        (name, texts[i])
        for i in range(max(len(texts) for texts in shuffled.values()))
        for name, texts in shuffled.items()
        if i < len(texts) and len(texts[i].split()) <= _MOST_WORDS
    ]
    kept = [turns[i] for i in drop_near_duplicates([text for _, text in turns], _SIMILAR)][:count]
    if len(kept) < count:
        raise ValueError(f"{len(kept)} different prompts in {', '.join(sets)}, {count} are wanted")
    return [{"text": text, "category": name} for name, text in kept]


def _tasks(file: Path) -> Iterator[str]:
    """Each task's instruction with its first input."""
    for line in file.read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        given = task["instances"][0]["input"].strip()
        yield f"{task['instruction'].strip()}\n\n{given}" if given else task["instruction"].strip()


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


def _write(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
