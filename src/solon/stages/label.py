"""Stage 6, label: the judge says which of two answers a principle prefers (RLAIF).

Bai et al. 2022, sec. 4.1: one principle drawn for each label, and the probability kept as a soft label.
A pair that the judge cannot score is kept as unscored and trains nothing. On some pairs every principle is
asked, to show what each of them does.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, groupby
from typing import Any

from solon.constitution import Principle
from solon.digest import seed_from
from solon.feedback.base import Judgement, Question
from solon.feedback.calibration import Calibrated
from solon.feedback.effects import as_metrics
from solon.feedback.ensemble import every_principle, principles_asked
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Label, Written
from solon.stages.common import in_batches, picked_judge, role_engine
from solon.store import StageResult, Workspace, write_atomically

Drawn = tuple[Written, Written, Principle]


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    engine = role_engine(recipe, inputs, "judge")
    judge = picked_judge(recipe, inputs, engine)
    answers = inputs.rows("sample", Written)
    groups = [list(group) for _, group in groupby(answers, key=lambda row: row.prompt_id)]

    def work(batch: Sequence[Sequence[Written]]) -> tuple[list[Label], int]:
        before = engine.tokens_read + engine.tokens_generated
        drawn = [pair for group in batch for pair in _pairs(recipe, inputs, group)]
        questions = [Question(p, a.prompt, a.text, b.text, kind=a.prompt_kind) for a, b, p in drawn]
        rows = [
            _label(recipe, inputs, judge, pair, question, judgement)
            for pair, question, judgement in zip(drawn, questions, judge.compare(questions), strict=True)
        ]
        return rows, engine.tokens_read + engine.tokens_generated - before

    rows = list(workspace.batches(in_batches(groups, recipe.label.batch), Label, work, "prompts"))
    write_atomically(workspace.folder / "calibration.json", json.dumps(judge.calibration.as_dict(), indent=1))
    return StageResult(rows, _metrics(recipe, inputs, judge, rows), outputs=("calibration.json",))


def _metrics(recipe: Recipe, inputs: Inputs, judge: Calibrated, rows: Sequence[Label]) -> dict[str, Any]:
    drawn = dict(sorted(Counter(row.principle or "" for row in rows).items()))
    found: dict[str, Any] = {
        "unscored": dict(Counter(row.unscored for row in rows if row.unscored)),
        "dropped": dict(Counter(row.dropped for row in rows if row.dropped)),
        "truncated": sum(row.truncated for row in rows),
        "principles": drawn,
    }
    sample = [row for row in rows if row.p_a is not None]
    random.Random(seed_from(recipe.seed, "effects")).shuffle(sample)
    if sample := sample[: recipe.label.effects]:
        principles = inputs.constitution.of("training")
        pairs = [(row.prompt, row.a, row.b, row.prompt_kind) for row in sample]
        p_NK = every_principle(judge, principles, pairs)
        found["effects"] = as_metrics(p_NK, [p.id for p in principles], drawn)
    return found


def _pairs(recipe: Recipe, inputs: Inputs, answers: Sequence[Written]) -> list[Drawn]:
    """Some of the pairs of one prompt's answers, each with a principle. Equal texts make no pair."""
    rng = random.Random(seed_from(recipe.seed, answers[0].prompt_id, "pairs"))
    different = [(a, b) for a, b in combinations(answers, 2) if a.text != b.text]
    chosen = rng.sample(different, min(recipe.label.pairs, len(different)))
    kind = answers[0].prompt_kind
    return [(*_shuffled(pair, rng), inputs.constitution.draw(rng, kind=kind)) for pair in chosen]


def _shuffled(pair: tuple[Written, Written], rng: random.Random) -> tuple[Written, Written]:
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _label(
    recipe: Recipe, inputs: Inputs, judge: Calibrated, drawn: Drawn, question: Question, judgement: Judgement
) -> Label:
    a, b, principle = drawn
    return Label(
        parents=(a.id, b.id),
        origin=judge.name,
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
        p_raw=judgement.p_raw,
        asked=tuple(p.id for p in principles_asked(judge, question)),
        disagreement=judgement.disagreement,
        truncated=judgement.truncated,
        unscored=judgement.unscored,
        dropped=_dropped(judgement, recipe.label.margin),
    )


def _dropped(judgement: Judgement, margin: float) -> str | None:
    """Why a scored pair trains nothing; a margin of 0 keeps even ties."""
    if judgement.p_a is not None and abs(judgement.p_a - 0.5) < margin:
        return "near-tie"
    return None
