"""On how many of a run's pairs its judge prefers another answer if a principle is reworded."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from solon.constitution import Constitution, asked_on
from solon.constitution_diff import differences
from solon.digest import seed_from
from solon.engines.opening import open_role
from solon.errors import RunError
from solon.feedback.base import Judge, Question
from solon.feedback.effects import flipped_share
from solon.feedback.ensemble import by_one_principle
from solon.feedback.opening import Bench, open_judge
from solon.plan import BY_NAME
from solon.recipe import load_recipe
from solon.records import Label
from solon.role_models import role_source
from solon.store import read_manifest, read_rows


@dataclass(frozen=True)
class Flips:
    """How many of the pairs scored in both wordings change their side under one principle.

    The principle is asked alone: a label that is the mean of several principles need not turn with it.
    """

    principle: str
    flipped: int
    scored: int

    def __str__(self) -> str:
        if not self.scored:
            return f"{self.principle}: no pair could be scored by both wordings"
        share = self.flipped / self.scored
        pairs = f"{self.flipped} of {self.scored} pairs"
        return f"{self.principle}: asked alone, it would prefer the other answer on {pairs} ({share:.0%})"


def flips(old: Constitution, new: Constitution, run: Path, most: int) -> Iterator[Flips]:
    """For each reworded training principle, how many labels of the run it would turn if it were asked.

    The judge is the run's own. Changed comparisons teach a probe anew, so they count as well.

    Raises:
        RunError: the run has no labels yet.
    """
    folder = run / BY_NAME["label"].folder
    picked = read_manifest(run / BY_NAME["preflight"].folder)
    if picked is None or read_manifest(folder) is None:
        raise RunError(f"{run}: holds no labels. Run its recipe at least `--until label`.")
    rows = [row for row in read_rows(folder / "rows.parquet", Label) if row.p_a is not None]
    recipe, _ = load_recipe(run / "recipe.yaml")
    source = role_source("judge", recipe.judge, recipe.model)
    engine = open_role("judge", recipe.judge, source, recipe.device, recipe.dtype, recipe.batch_tokens)
    judges = [
        by_one_principle(
            open_judge(picked.metrics["kind"], Bench(recipe.judge, c, engine, "training", recipe.seed))
        )
        for c in (old, new)
    ]
    kept = {p.id for p in new.of("training")}
    changed = [r.old.id for r in differences(old, new).reworded if r.old.id in kept]
    # Without a reworded principle the comparisons may differ; then those that were drawn are asked.
    for principle in changed or sorted({str(row.principle) for row in rows} & kept):
        on = [
            row for row in rows if all(asked_on(c.principle(principle), row.prompt_kind) for c in (old, new))
        ]
        # Rows stand in the order of their kinds: the first so many would be of red-team prompts alone.
        drawn = random.Random(seed_from(recipe.seed, "flips", principle)).sample(on, min(most, len(on)))
        yield _flips(judges, (old, new), principle, drawn)


def _flips(
    judges: list[Judge], constitutions: tuple[Constitution, Constitution], principle: str, rows: list[Label]
) -> Flips:
    sides = []
    for judge, constitution in zip(judges, constitutions, strict=True):
        p = constitution.principle(principle)
        judgements = judge.compare(
            [Question(p, row.prompt, row.a, row.b, kind=row.prompt_kind) for row in rows]
        )
        sides.append([float("nan") if j.p_a is None else j.p_a for j in judgements])
    return Flips(principle, *flipped_share(*sides))
