"""Stage 5, sample: several answers of the SL model to each prompt, to be compared; and openings of more.

Whether an answer refuses is settled in its first words. So openings, a few tokens each, tell for little which
prompts the model is undecided about: those are what reinforcement learns most from, and a few repeated often
would be learnt by heart. They are not compared, and lie in a file of their own.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

from solon.digest import seed_from
from solon.engines.base import Engine, GenerateRequest, completions
from solon.models import resolve
from solon.pipeline import Inputs
from solon.recipe import Openings, Recipe, Sample
from solon.records import Prompt, PromptKind, TextKind, Written
from solon.stages.common import asks, choose_fresh, engine_for, in_batches, written
from solon.store import Journalled, StageResult, Workspace, read_rows, write_rows

OPENINGS = "openings.parquet"


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    settings = recipe.sample
    engine = engine_for(recipe, resolve(str(inputs.folders["finetune"] / "model")))
    found = texts(settings, "answer", recipe, _prompts(settings, recipe, inputs), engine, workspace)
    if not settings.openings.any:
        return StageResult(found)
    more = _prompts(settings.openings, recipe, inputs)
    openings = texts(settings.openings, "opening", recipe, more, engine, workspace)
    write_rows(workspace.folder / OPENINGS, Written, openings)
    return StageResult(found, outputs=(OPENINGS,))


def sampled(recipe: Recipe, inputs: Inputs) -> Iterator[Written]:
    """All answers of this stage, and all openings."""
    answers = inputs.rows("sample", Written)
    if not recipe.sample.openings.any:
        return iter(answers)
    return chain(answers, read_rows(inputs.folders["sample"] / OPENINGS, Written))


def _prompts(settings: Sample | Openings, recipe: Recipe, inputs: Inputs) -> Sequence[Prompt]:
    counts: dict[PromptKind, int] = {"red_team": settings.prompts, "helpful": settings.helpful}
    return choose_fresh(recipe, inputs.rows("red_team", Prompt), counts)


def texts(
    settings: Sample | Openings,
    kind: TextKind,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    engine: Engine,
    workspace: Workspace,
) -> Journalled[Written]:
    """Several texts of this kind to each prompt; all of them, on the disk."""

    def work(batch: Sequence[Prompt]) -> tuple[list[Written], int]:
        asked = [(prompt, number) for prompt in batch for number in range(settings.answers)]
        requests = [
            GenerateRequest(asks(p.text), settings.sampling, seed_from(recipe.seed, p.id, stem, number))
            for p, number in asked
        ]
        rows = [
            written(
                prompt,
                completion,
                kind=kind,
                request=prompt.text,
                sampling=settings.sampling,
                origin="sl",
                number=number,
            )
            for (prompt, number), completion in zip(asked, completions(engine, requests), strict=True)
        ]
        return rows, sum(row.tokens for row in rows)

    stem = "sample" if kind == "answer" else kind
    batches = [(f"{kind}-{name}", items) for name, items in in_batches(prompts, recipe.sample.batch)]
    return workspace.batches(batches, Written, work, "prompts")
