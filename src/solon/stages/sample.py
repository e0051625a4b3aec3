"""Stage 5, sample: several answers of the SL model to each prompt, to be compared."""

from collections.abc import Sequence

from solon.digest import seed_from
from solon.engines.base import Engine, GenerateRequest, completions
from solon.models import resolve
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt, Written
from solon.stages.common import asks, choose_fresh, engine_for, in_batches, written
from solon.store import Journalled, StageResult, Workspace


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    settings = recipe.sample
    rows = inputs.rows("red_team", Prompt)
    prompts = choose_fresh(recipe, rows, {"red_team": settings.prompts, "helpful": settings.helpful})
    engine = engine_for(recipe, resolve(str(inputs.folders["finetune"] / "model")))
    return StageResult(answers(recipe, prompts, engine, workspace))


def answers(
    recipe: Recipe, prompts: Sequence[Prompt], engine: Engine, workspace: Workspace
) -> Journalled[Written]:
    """Several answers to each prompt; all of them, on the disk."""
    settings = recipe.sample

    def work(batch: Sequence[Prompt]) -> tuple[list[Written], int]:
        asked = [(prompt, number) for prompt in batch for number in range(settings.answers)]
        requests = [
            GenerateRequest(asks(p.text), settings.sampling, seed_from(recipe.seed, p.id, "sample", number))
            for p, number in asked
        ]
        rows = [
            written(
                prompt,
                completion,
                kind="answer",
                request=prompt.text,
                sampling=settings.sampling,
                origin="sl",
                number=number,
            )
            for (prompt, number), completion in zip(asked, completions(engine, requests), strict=True)
        ]
        return rows, sum(row.tokens for row in rows)

    return workspace.batches(in_batches(prompts, settings.batch), Written, work, "prompts")
