"""Stage 5, label: the judge says which of two answers a principle prefers (RLAIF).

Bai et al. 2022, sec. 4.1: one principle drawn for each label, and the probability kept as a soft label.
A pair that the judge cannot score is kept as unscored and trains nothing.
"""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, groupby

from solon.constitution import Principle
from solon.digest import seed_from
from solon.feedback.base import Judgement, Question
from solon.feedback.check import checked_judge
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Label, Written
from solon.stages.common import in_batches, judge_engine
from solon.store import StageResult, Workspace

Drawn = tuple[Written, Written, Principle]


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    engine = judge_engine(recipe, inputs.base)
    judge, check = checked_judge(recipe.judge, inputs.constitution, engine, "training", recipe.seed)
    answers = inputs.rows("sample", Written)
    groups = [list(group) for _, group in groupby(answers, key=lambda row: row.prompt_id)]

    def work(batch: Sequence[Sequence[Written]]) -> tuple[list[Label], int]:
        before = engine.tokens_read
        drawn = [pair for group in batch for pair in _pairs(recipe, inputs, group)]
        judged = judge.compare([Question(principle, a.prompt, a.text, b.text) for a, b, principle in drawn])
        rows = [
            _label(inputs, judge.name, pair, judgement) for pair, judgement in zip(drawn, judged, strict=True)
        ]
        return rows, engine.tokens_read - before

    rows = workspace.batches(in_batches(groups, recipe.label.batch), Label, work, "prompts")
    unscored = Counter(row.unscored for row in rows if row.unscored)
    metrics = {"check": check.as_dict(), "unscored": dict(unscored), "principles": _drawn_counts(rows)}
    return StageResult(rows, metrics)


def _pairs(recipe: Recipe, inputs: Inputs, answers: Sequence[Written]) -> list[Drawn]:
    """Some of the pairs of one prompt's answers, each with a principle. Equal texts make no pair."""
    rng = random.Random(seed_from(recipe.seed, answers[0].prompt_id, "pairs"))
    different = [(a, b) for a, b in combinations(answers, 2) if a.text != b.text]
    chosen = rng.sample(different, min(recipe.label.pairs, len(different)))
    return [(*_shuffled(pair, rng), inputs.constitution.draw(rng)) for pair in chosen]


def _shuffled(pair: tuple[Written, Written], rng: random.Random) -> tuple[Written, Written]:
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _label(inputs: Inputs, judge: str, drawn: Drawn, judgement: Judgement) -> Label:
    a, b, principle = drawn
    return Label(
        parents=(a.id, b.id),
        origin=judge,
        principle=principle.id,
        constitution=inputs.constitution.digest,
        prompt_id=a.prompt_id,
        prompt=a.prompt,
        prompt_kind=a.prompt_kind,
        a_id=a.id,
        b_id=b.id,
        a=a.text,
        b=b.text,
        a_finish=a.finish,
        b_finish=b.finish,
        p_a=judgement.p_a,
        unscored=judgement.unscored,
    )


def _drawn_counts(rows: Sequence[Label]) -> dict[str, int]:
    return dict(sorted(Counter(row.principle or "" for row in rows).items()))
