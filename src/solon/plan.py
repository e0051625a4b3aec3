"""The method as a graph: which stages there are, what each reads, and what its result depends on.

Imports no torch: a dry run needs only this file. A stage's key is a digest of everything that its rows
depend on (its part of the recipe and of the constitution, its inputs' contents, the model), so that it
is redone if, and only if, one of these changed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon import shipped
from solon.constitution import Constitution, Principle
from solon.digest import digest, file_sha256
from solon.recipe import JudgeSettings, Recipe
from solon.records import Label, Prompt, Row, Step, Verdict, Written

Part = Callable[[Recipe, Constitution], Any]


@dataclass(frozen=True)
class Stage:
    """One stage: its module below `solon.stages`, its inputs, and what it depends on.

    `version` is raised when a change of the code changes the rows.
    """

    number: int
    name: str
    row: type[Row]
    inputs: tuple[str, ...]
    depends: Part
    planned: Callable[[Recipe], str]
    version: int = 1

    @property
    def folder(self) -> str:
        return f"{self.number:02d}_{self.name}"


def _wordings(principles: tuple[Principle, ...], *fields: str) -> list[Any]:
    return [[p.id, p.weight, *(getattr(p, field) for field in fields)] for p in principles]


def judge_part(settings: JudgeSettings, constitution: Constitution, purpose: Any) -> Any:
    """What a judge's answers depend on. A probe never reads the questions; a choice judge does."""
    part = [settings.model_dump(), [c.model_dump() for c in constitution.comparisons(purpose)]]
    if settings.kind == "choice":
        part.append(_wordings(constitution.of(purpose), "question"))
    return part


def _red_team(recipe: Recipe, constitution: Constitution) -> Any:
    return recipe.red_team.model_dump()


def _revise(recipe: Recipe, constitution: Constitution) -> Any:
    principles = _wordings(constitution.of("training"), "critique", "revision")
    ids = {p.id for p in constitution.of("training")}
    shown = [d.model_dump() for d in constitution.demonstrations.revisions if d.principle in ids]
    judged = judge_part(recipe.judge, constitution, "training") if recipe.revise.candidates > 1 else None
    return [recipe.revise.model_dump(), principles, shown, judged]


def _label(recipe: Recipe, constitution: Constitution) -> Any:
    questions = _wordings(constitution.of("training"), "question")
    return [recipe.label.model_dump(), questions, judge_part(recipe.judge, constitution, "training")]


def _evaluate(recipe: Recipe, constitution: Constitution) -> Any:
    questions = _wordings(constitution.of("evaluation"), "question")
    return [recipe.evaluate.model_dump(), questions, judge_part(recipe.judge, constitution, "evaluation")]


def _count_revise(recipe: Recipe) -> str:
    r = recipe.revise
    texts = r.rounds * (r.candidates + (1 if r.critique else 0))
    return f"{r.prompts} red-team prompts x (1 answer + {texts} texts), {r.helpful} helpful answers"


STAGES: tuple[Stage, ...] = (
    Stage(
        1,
        "red_team",
        Prompt,
        (),
        _red_team,
        lambda r: (
            f"prompts of {len(r.red_team.sources) + len(r.red_team.helpful)} files"
            + (f", {r.red_team.written} written by the model" if r.red_team.written else "")
        ),
    ),
    Stage(2, "revise", Written, ("red_team",), _revise, _count_revise),
    Stage(
        3,
        "finetune",
        Step,
        ("revise",),
        lambda r, _: r.finetune.model_dump(),
        lambda r: f"{r.finetune.optimiser.epochs} epochs, {r.finetune.method}",
    ),
    Stage(
        4,
        "sample",
        Written,
        ("red_team", "finetune"),
        lambda r, _: r.sample.model_dump(),
        lambda r: f"{r.sample.prompts + r.sample.helpful} prompts x {r.sample.answers} answers",
    ),
    Stage(
        5,
        "label",
        Label,
        ("sample",),
        _label,
        lambda r: f"up to {(r.sample.prompts + r.sample.helpful) * r.label.pairs} pairs, {r.judge.kind}",
    ),
    Stage(
        6,
        "reward",
        Step,
        ("label", "finetune"),
        lambda r, _: r.reward.model_dump(),
        lambda r: f"{r.reward.optimiser.epochs} epochs of pairs",
    ),
    Stage(
        7,
        "reinforce",
        Step,
        ("red_team", "finetune", "reward"),
        lambda r, _: r.reinforce.model_dump(),
        lambda r: f"{r.reinforce.steps} steps x {r.reinforce.episodes} episodes",
    ),
    Stage(
        8,
        "evaluate",
        Verdict,
        ("red_team", "revise", "finetune", "reinforce"),
        _evaluate,
        lambda r: f"3 models x {r.evaluate.prompts + r.evaluate.helpful} held-out prompts",
    ),
)

BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}


def prompt_paths(recipe: Recipe, beside: Path) -> list[Path]:
    """The prompt files that the recipe names. Raises UsageError for one that is absent."""
    sources = [*recipe.red_team.sources, *recipe.red_team.helpful]
    return [shipped.find("prompts", source.file, ".jsonl", beside) for source in sources]


def stage_key(
    stage: Stage,
    recipe: Recipe,
    constitution: Constitution,
    model_identity: str,
    inputs: Mapping[str, str],
    beside: Path,
) -> str:
    """The digest of all that the rows of `stage` depend on. `inputs` maps stage names to output digests."""
    files = [file_sha256(path) for path in prompt_paths(recipe, beside)] if not stage.inputs else []
    common = [stage.name, stage.version, recipe.seed, recipe.dtype, model_identity]
    return digest([common, stage.depends(recipe, constitution), dict(inputs), files])
