"""Stage 6, label: the judge says which of two answers a principle prefers (RLAIF).

Bai et al. 2022, sec. 4.1: one principle drawn for each label, and the probability kept as a soft label.
A pair that the judge cannot score is kept as unscored and trains nothing. With `label.crossed` some pairs
have a refusal of another prompt on one side, in either place. On some pairs every principle is
asked, to show what each of them does.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

from solon.constitution import Principle
from solon.digest import seed_from
from solon.engines.base import used_by
from solon.feedback.base import Judgement, Question, decisions, settled
from solon.feedback.calibration import Calibrated
from solon.feedback.effects import as_metrics
from solon.feedback.ensemble import every_principle, principles_asked
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Label, Written
from solon.refusal import is_refusal
from solon.stages.common import in_batches, picked_judge, role_engine
from solon.store import StageResult, Workspace, write_atomically


@dataclass(frozen=True)
class Drawn:
    """A pair to be compared: `about` has its prompt, and one or both of a and b answer that."""

    about: Written
    a: Written
    b: Written
    principle: Principle

    @property
    def question(self) -> Question:
        row = self.about
        return Question(self.principle, row.prompt, self.a.text, self.b.text, kind=row.prompt_kind)


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    engine = role_engine(recipe, inputs, "judge")
    judge = picked_judge(recipe, inputs, engine)
    answers = inputs.rows("sample", Written)
    groups = [list(group) for _, group in groupby(answers, key=lambda row: row.prompt_id)]
    refusals = [row for row in answers if is_refusal(row.text)] if recipe.label.crossed else []
    used = used_by(engine)

    def work(batch: Sequence[Sequence[Written]]) -> list[Label]:
        drawn = [pair for group in batch for pair in _pairs(recipe, inputs, group)]
        drawn += [pair for group in batch for pair in _crossed(recipe, inputs, group, refusals)]
        # An empty answer is worse than any: else nothing would teach the reward model what silence is worth
        judged = decisions([pair.question for pair in drawn], judge.compare)
        return [_label(recipe, inputs, judge, *found) for found in zip(drawn, judged, strict=True)]

    rows = list(workspace.batches(in_batches(groups, recipe.label.batch), Label, work, "prompts", used))
    write_atomically(workspace.folder / "calibration.json", json.dumps(judge.calibration.as_dict(), indent=1))
    metrics = _metrics(recipe, inputs, judge, rows)
    return StageResult(rows, metrics, ("calibration.json",), used() - workspace.counted)


def _metrics(recipe: Recipe, inputs: Inputs, judge: Calibrated, rows: Sequence[Label]) -> dict[str, Any]:
    drawn = dict(sorted(Counter(row.principle or "" for row in rows).items()))
    found: dict[str, Any] = {
        "unscored": dict(Counter(row.unscored for row in rows if row.unscored)),
        "dropped": dict(Counter(row.dropped for row in rows if row.dropped)),
        "truncated": sum(row.truncated for row in rows),
        "principles": drawn,
    }
    asked = [row for row in rows if settled(row.a, row.b) is None]
    sample = [row for row in asked if row.p_a is not None and not row.crossed]
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
    return [_drawn(inputs, answers[0], pair, rng) for pair in chosen]


def _crossed(
    recipe: Recipe, inputs: Inputs, answers: Sequence[Written], refusals: Sequence[Written]
) -> list[Drawn]:
    rng = random.Random(seed_from(recipe.seed, answers[0].prompt_id, "crossed"))
    pairs = crossed_pairs(answers, refusals, recipe.label.crossed, rng)
    return [_drawn(inputs, answers[0], pair, rng) for pair in pairs]


def crossed_pairs(
    answers: Sequence[Written], refusals: Sequence[Written], count: int, rng: random.Random
) -> list[tuple[Written, Written]]:
    """At most `count` answers to one prompt that are no refusals, each beside a refusal of another prompt.

    The answers to an ordinary prompt hold few refusals, and a reward model that has seen few does not learn
    that they are worse; a policy finds that out. Such pairs cost no generation.
    """
    own = [row for row in answers if not is_refusal(row.text)]
    others = [row for row in refusals if row.prompt_id != answers[0].prompt_id]
    if not others:
        return []
    return [(row, rng.choice(others)) for row in rng.sample(own, min(count, len(own)))]


def _drawn(inputs: Inputs, about: Written, pair: tuple[Written, Written], rng: random.Random) -> Drawn:
    """In a random order, with a principle."""
    a, b = pair if rng.random() < 0.5 else (pair[1], pair[0])
    return Drawn(about, a, b, inputs.constitution.draw(rng, kind=about.prompt_kind))


def _label(recipe: Recipe, inputs: Inputs, judge: Calibrated, drawn: Drawn, judgement: Judgement) -> Label:
    a, b, about = drawn.a, drawn.b, drawn.about
    return Label(
        parents=(a.id, b.id),
        origin=judge.name,
        principle=drawn.principle.id,
        constitution=inputs.constitution.digest,
        prompt_id=about.prompt_id,
        prompt=about.prompt,
        prompt_kind=about.prompt_kind,
        a_id=a.id,
        b_id=b.id,
        a=a.text,
        b=b.text,
        a_finish=a.finish,
        b_finish=b.finish,
        p_a=judgement.p_a,
        p_raw=judgement.p_raw,
        asked=_asked(judge, drawn.question),
        disagreement=judgement.disagreement,
        truncated=judgement.truncated,
        unscored=judgement.unscored,
        dropped=_dropped(judgement, recipe.label.margin),
        crossed=a.prompt_id != b.prompt_id,
    )


def _asked(judge: Calibrated, question: Question) -> tuple[str, ...]:
    """The principles that the judge was asked; none where there was nothing to ask."""
    if settled(question.a, question.b) is not None:
        return ()
    return tuple(principle.id for principle in principles_asked(judge, question))


def _dropped(judgement: Judgement, margin: float) -> str | None:
    """Why a scored pair trains nothing; a margin of 0 keeps even ties."""
    if judgement.p_a is not None and abs(judgement.p_a - 0.5) < margin:
        return "near-tie"
    return None
