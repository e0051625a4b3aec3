"""Stage 5, sample: several answers of the SL model to each prompt, to be compared."""

from collections.abc import Sequence

from solon.engines.base import Engine, used_by
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt, Written
from solon.stages.common import choose_fresh, engine_for, in_batches, several, sl_model
from solon.store import Journalled, StageResult, Workspace


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    settings = recipe.sample
    rows = inputs.rows("red_team", Prompt)
    prompts = choose_fresh(recipe, rows, {"red_team": settings.prompts, "helpful": settings.helpful})
    engine = engine_for(recipe, sl_model(inputs))
    return StageResult(answers(recipe, prompts, engine, workspace))


def answers(
    recipe: Recipe, prompts: Sequence[Prompt], engine: Engine, workspace: Workspace
) -> Journalled[Written]:
    """Several answers to each prompt; all of them, on the disk."""
    settings = recipe.sample

    def work(batch: Sequence[Prompt]) -> list[Written]:
        return several(engine, batch, settings.answers, settings.sampling, "answer", recipe.seed)

    return workspace.batches(in_batches(prompts, settings.batch), Written, work, "prompts", used_by(engine))
