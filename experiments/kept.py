"""What an evaluation comes to, prompt by prompt, as numbers that stay when the run's folder has gone.

`results/RECIPE-SEED.jsonl` has no text. From such files a table is made of seeds that ran on different days
or machines, and anyone can compute its intervals anew. The first line names the recipe that was run and the
prompts, by a digest of all that the numbers depend on: those of another are refused.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import degenerate

from solon import shipped
from solon.digest import digest, file_sha256
from solon.pipeline import Run
from solon.plan import STAGES
from solon.progress import Reporter
from solon.recipe import Recipe, load_recipe
from solon.records import PromptKind, Verdict, Written
from solon.refusal import is_refusal
from solon.stages.evaluate import win
from solon.store import read_rows

# What differs between seeds, machines and held-out sets, and leaves a recipe what it is.
_BESIDE: dict[str, Any] = {
    "seed": True,
    "device": True,
    "dtype": True,
    "batch_tokens": True,
    "red_team": {"heldout", "heldout_sources", "heldout_helpful"},
    "revise": {"batch"},
    "sample": {"batch"},
    "label": {"batch"},
    "reinforce": {"batch_tokens": True, "openings": {"batch"}},
    "evaluate": {"prompts", "helpful", "batch"},
}


@dataclass(frozen=True)
class Answered:
    """About a model's answer. `harm`: a classifier's log-odds that people would call it harmful, if asked."""

    refused: bool
    degenerate: bool
    harm: float | None

    @property
    def complies(self) -> bool:
        """Neither a refusal nor nonsense: on a harmful request this counts as harmful: too strict."""
        return not (self.refused or self.degenerate)


@dataclass(frozen=True)
class Asked:
    """A held-out prompt: each model's answer, and by "A>B" whether the judge prefers A's (1, 0, 1/2: a tie).

    A pair on which the judge gave no verdict is absent.
    """

    prompt: str
    on: PromptKind
    answers: Mapping[str, Answered]
    preferred: Mapping[str, float]


def identity(recipe: Recipe, beside: Path) -> str:
    """A digest of all that a result depends on save seed, machine and held-out prompts.

    `beside` is the folder to which the recipe's file names are relative.
    """
    files = [
        shipped.find("prompts", source.file, ".jsonl", beside)
        for source in (*recipe.red_team.sources, *recipe.red_team.helpful)
    ]
    files.append(shipped.find("constitutions", recipe.constitution, ".yaml", beside))
    versions = {stage.name: stage.version for stage in STAGES}
    settings = recipe.model_dump(mode="json", exclude=_BESIDE)
    return digest([settings, [file_sha256(file) for file in files], versions])


def of_run(folder: Path, beside: Path, settings: Mapping[str, Any] | None = None) -> str:
    """The identity of the recipe that a finished run was made with, whose files lie in `beside`.

    Raises ValueError if a stage is missing, or was made by other code, from other files, or with other
    values of `settings` than those.
    """
    changes = tuple(f"{name}={value}" for name, value in (settings or {}).items())
    recipe, _ = load_recipe(folder / "recipe.yaml", changes)
    for planned in Run(recipe, beside, folder, Reporter(quiet=True)).plan():
        if planned.reused is None:
            raise ValueError(f"{folder}: {planned.stage.name} is missing or out of date; run it again")
    return identity(recipe, beside)


def measured(folder: Path, classifier: Callable[[Sequence[tuple[str, str]]], Iterable[float]]) -> list[Asked]:
    """A finished run's numbers. The classifier tells the log-odds of red-team answers: of (prompt, text)."""
    rows = list(read_rows(folder / "09_evaluate" / "answers.parquet", Written))
    different = list(dict.fromkeys((row.prompt, row.text) for row in rows if row.prompt_kind == "red_team"))
    harm = dict(zip(different, map(float, classifier(different)), strict=True))
    answers: dict[tuple[str, PromptKind], dict[str, Answered]] = {}
    for row in rows:
        odds = harm[row.prompt, row.text] if row.prompt_kind == "red_team" else None
        found = Answered(is_refusal(row.text), degenerate(row.text), odds)
        answers.setdefault((row.prompt_id, row.prompt_kind), {})[row.origin] = found
    preferred: dict[str, dict[str, float]] = {}
    for verdict in read_rows(folder / "09_evaluate" / "rows.parquet", Verdict):
        if verdict.p_a is not None:
            pair = f"{verdict.a_model}>{verdict.b_model}"
            preferred.setdefault(verdict.prompt_id, {})[pair] = win(verdict.p_a)
    return [Asked(prompt, on, own, preferred.get(prompt, {})) for (prompt, on), own in answers.items()]


def write(file: Path, name: str, asked: Sequence[Asked]) -> None:
    """Keep the numbers of a run whose recipe has this identity."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"identity": name}), *(json.dumps(asdict(one)) for one in asked)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(file: Path, name: str) -> list[Asked]:
    """The numbers that were kept. Raises ValueError if they are of a recipe with another identity."""
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    if json.loads(head) != {"identity": name}:
        raise ValueError(f"{file}: made by another version of the recipe; remove it, and run the seed again")
    return [_asked(json.loads(line)) for line in lines]


def _asked(row: dict[str, Any]) -> Asked:
    answers = {model: Answered(**about) for model, about in row.pop("answers").items()}
    return Asked(**row, answers=answers)
