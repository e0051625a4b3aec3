"""Stage 9, evaluate: base, SL and RL models on prompts that none of them was trained on.

Greedy answers; a judge taught by the evaluation principles alone, which no training stage has seen;
every figure with an interval over prompts. The helpful set shows over-refusal.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solon.constitution import Principle
from solon.digest import digest, seed_from
from solon.engines.base import Engine, GenerateRequest, completions, used_by
from solon.engines.local import LocalEngine
from solon.feedback.base import Judge, Judgement, Question, decisions, preferences
from solon.feedback.opening import Picked, pick
from solon.models import ModelSource, resolve
from solon.pipeline import Inputs
from solon.plan import check_paths, model_folder, rl_models
from solon.recipe import Recipe
from solon.records import Prompt, PromptKind, Verdict, Written
from solon.refusal import is_refusal
from solon.report.statistics import bootstrap_ratings, wilson
from solon.settings import Sampling
from solon.stages.common import (
    asks,
    choose,
    engine_for,
    in_batches,
    judge_bench,
    role_engine,
    sl_model,
    written,
)
from solon.store import StageResult, Workspace, write_rows
from solon.text import is_degenerate, words

SETS: tuple[PromptKind, ...] = ("red_team", "helpful")


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    models = compared(recipe)
    answers = _answers(recipe, inputs, workspace)
    write_rows(workspace.folder / "answers.parquet", Written, answers)
    engine = role_engine(recipe, inputs, "evaluator")
    used, before = used_by(engine), workspace.counted
    bench = judge_bench(recipe, inputs, engine, "evaluation")
    picked = pick(bench, *check_paths(recipe, inputs.beside, "evaluator"))
    verdicts = _verdicts(recipe, inputs, workspace, picked, engine, answers)
    resamples = recipe.evaluate.bootstrap
    metrics = {
        "kind": picked.kind,
        "checks": [check.as_dict() for check in picked.checks],
        "weak": [check.on for check in picked.weak],
        "models": {name: describe(_of(answers, name)) for name in models},
        "pairwise": [p for on in SETS for p in _pairwise(verdicts, models, on)],
        "ratings": [r for on in SETS for r in _ratings(verdicts, models, on, resamples, recipe.seed)],
        "revision_rounds": _revision_curve(recipe, inputs, picked.judge),
    }
    tokens = used() - (workspace.counted - before)
    return StageResult(verdicts, metrics, ("answers.parquet",), tokens)


def compared(recipe: Recipe) -> tuple[str, ...]:
    """The models that are compared, in their order of training."""
    return ("base", "sl", *rl_models(recipe))


def _answers(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> list[Written]:
    """Greedy answers of all models, in planned batches of one model each."""
    settings = recipe.evaluate
    prompts = inputs.rows("red_team", Prompt)
    chosen = choose(
        prompts, "heldout", {"red_team": settings.prompts, "helpful": settings.helpful}, recipe.seed
    )
    sources = {
        "base": inputs.base,
        "sl": sl_model(inputs),
        **{
            name: resolve(str(inputs.folders["reinforce"] / model_folder(name))) for name in rl_models(recipe)
        },
    }
    engines = _OneAtATime(recipe, sources)
    plan = [
        (f"{model}-{name}", [(model, prompt) for prompt in batch])
        for model in sources
        for name, batch in in_batches(chosen, settings.batch)
    ]
    sampling = Sampling(max_tokens=settings.max_tokens, temperature=0.0)

    def work(batch: Sequence[tuple[str, Prompt]]) -> list[Written]:
        model = batch[0][0]
        requests = [GenerateRequest(asks(p.text), sampling, 0) for _, p in batch]
        given = completions(engines.open(model), requests)
        return [
            written(p, completion, kind="answer", request=p.text, sampling=sampling, origin=model)
            for (_, p), completion in zip(batch, given, strict=True)
        ]

    return list(workspace.batches(plan, Written, work, "answers", engines.used))


class _OneAtATime:
    """Keeps one model in memory; batches come model by model."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, ModelSource]) -> None:
        self._recipe = recipe
        self._sources = sources
        self._open: tuple[str, LocalEngine] | None = None
        self._used_before = 0

    def open(self, name: str) -> LocalEngine:
        if self._open is None or self._open[0] != name:
            self._used_before, self._open = self.used(), None
            self._open = (name, engine_for(self._recipe, self._sources[name]))
        return self._open[1]

    def used(self) -> int:
        """Tokens that all of them have read and generated so far."""
        return self._used_before + (used_by(self._open[1])() if self._open else 0)


def _of(answers: Sequence[Written], model: str) -> list[Written]:
    return [a for a in answers if a.origin == model]


def _verdicts(
    recipe: Recipe,
    inputs: Inputs,
    workspace: Workspace,
    picked: Picked,
    engine: Engine,
    answers: Sequence[Written],
) -> list[Verdict]:
    """Every pair of models on every prompt, by an evaluation principle drawn for the prompt, in batches.

    All pairs of a prompt stand together: a judge that reads answers one by one reads each once then. Batches
    are named by the judge: one that is picked otherwise in a later attempt is asked anew.
    """
    models, judge = compared(recipe), picked.judge
    told = digest([picked.kind, judge.calibration.as_dict()])
    by_model = {name: {a.prompt_id: a for a in _of(answers, name)} for name in models}
    pairs = [
        (by_model[second][i], by_model[first][i])
        for i in by_model[models[0]]
        for first, second in combinations(models, 2)
    ]

    def work(batch: Sequence[tuple[Written, Written]]) -> list[Verdict]:
        principles = [_principle(recipe, inputs, a.prompt_id, a.prompt_kind) for a, _ in batch]
        questions = [
            Question(principle, a.prompt, a.text, b.text, kind=a.prompt_kind)
            for (a, b), principle in zip(batch, principles, strict=True)
        ]
        found = zip(batch, principles, decisions(questions, judge.compare), strict=True)
        return [_verdict(inputs, judge.name, *pair, principle, said) for pair, principle, said in found]

    plan = [(f"verdicts-{told}-{name}", batch) for name, batch in in_batches(pairs, recipe.evaluate.batch)]
    return list(workspace.batches(plan, Verdict, work, "comparisons", used_by(engine)))


def _verdict(
    inputs: Inputs, judge: str, a: Written, b: Written, principle: Principle, said: Judgement
) -> Verdict:
    return Verdict(
        parents=(a.id, b.id),
        origin=judge,
        principle=principle.id,
        constitution=inputs.constitution.digest,
        prompt_id=a.prompt_id,
        on=a.prompt_kind,
        a_model=a.origin,
        b_model=b.origin,
        a_id=a.id,
        b_id=b.id,
        p_a=said.p_a,
        unscored=said.unscored,
    )


def _principle(recipe: Recipe, inputs: Inputs, prompt_id: str, kind: PromptKind) -> Principle:
    """The evaluation principle that is drawn for a prompt."""
    return inputs.constitution.draw(random.Random(seed_from(recipe.seed, prompt_id)), "evaluation", kind)


def win(p_a: float) -> float:
    """1 for a won comparison, 0 for a lost one, 1/2 for a tie."""
    return 0.5 if p_a == 0.5 else float(p_a > 0.5)


def _pairwise(verdicts: Sequence[Verdict], models: Sequence[str], on: PromptKind) -> Iterator[dict[str, Any]]:
    """Share of prompts on which model a's answer is preferred to model b's; ties count half."""
    for first, second in combinations(models, 2):
        asked = [v for v in verdicts if (v.a_model, v.b_model, v.on) == (second, first, on)]
        wins = [win(v.p_a) for v in asked if v.p_a is not None]
        unscored = dict(Counter(v.unscored for v in asked if v.p_a is None))
        yield {"a": second, "b": first, "on": on, **_win_rate(wins), "unscored": unscored}


def _win_rate(wins: Sequence[float]) -> dict[str, Any]:
    """The mean of one win a prompt, with Wilson's interval; None where nothing was scored."""
    if not wins:
        return {"win_rate": None, "ci95": None, "n": 0}
    return {"win_rate": float(np.mean(wins)), "ci95": list(wilson(sum(wins), len(wins))), "n": len(wins)}


def _ratings(
    verdicts: Sequence[Verdict], models: Sequence[str], on: PromptKind, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Bradley-Terry ratings from the wins of all pairs, resampled by prompt."""
    ratings, intervals = bootstrap_ratings(wins_by_prompt(verdicts, models, on), resamples, seed)
    return [
        {"model": model, "on": on, "rating": float(rating), "ci95": [float(low), float(high)]}
        for model, rating, (low, high) in zip(models, ratings, intervals, strict=True)
    ]


def wins_by_prompt(verdicts: Sequence[Verdict], models: Sequence[str], on: PromptKind) -> NDArray[np.float64]:
    """[n, k, k]: on each prompt of a kind, how often model i was preferred to model j; ties count half."""
    prompts = sorted({v.prompt_id for v in verdicts if v.on == on})
    place = {prompt: i for i, prompt in enumerate(prompts)}
    wins = np.zeros((len(prompts), len(models), len(models)))
    for v in verdicts:
        if v.on == on and v.p_a is not None:
            a, b = models.index(v.a_model), models.index(v.b_model)
            wins[place[v.prompt_id], a, b] += win(v.p_a)
            wins[place[v.prompt_id], b, a] += 1.0 - win(v.p_a)
    return wins


def describe(answers: Sequence[Written]) -> dict[str, Any]:
    """Refusals, over-refusals, degenerate answers (of all, and by kind) and length of a model's answers."""
    every = [a.text for a in answers]
    red_team, helpful = ([a.text for a in answers if a.prompt_kind == on] for on in SETS)
    figures: dict[str, Any] = {"mean_words": float(np.mean([len(words(text)) for text in every]))}
    for name, texts, holds in (
        ("refusal", red_team, is_refusal),
        ("over_refusal", helpful, is_refusal),
        ("degenerate", every, is_degenerate),
        ("degenerate_red_team", red_team, is_degenerate),
        ("degenerate_helpful", helpful, is_degenerate),
    ):
        hits = sum(bool(holds(text)) for text in texts)
        figures[f"{name}_rate"] = hits / len(texts)
        figures[f"{name}_ci95"] = list(wilson(hits, len(texts)))
    return figures


def texts_by_round(rows: Sequence[Written], rounds: int) -> list[dict[str, Written]]:
    """By prompt id: the answers, and the last usable text after each round of revision."""
    found = [{r.prompt_id: r for r in rows if r.kind == "answer"}]
    for number in range(1, rounds + 1):
        revised = [r for r in rows if r.kind == "revision" and r.round == number]
        found.append(found[-1] | {r.prompt_id: r for r in revised if r.chosen and r.unusable is None})
    return found


def _revision_curve(recipe: Recipe, inputs: Inputs, judge: Judge) -> list[dict[str, Any]]:
    """Win rate of each round's text over the first answer, on the red-team training prompts."""
    rows = [r for r in inputs.rows("revise", Written) if r.prompt_kind == "red_team"]
    first, *revised = texts_by_round(rows, recipe.revise.rounds)
    curve = []
    for number, current in enumerate(revised, 1):
        questions = [
            Question(
                _principle(recipe, inputs, i, "red_team"),
                first[i].prompt,
                current[i].text,
                first[i].text,
                kind="red_team",
            )
            for i in sorted(first)
        ]
        wins = [win(p_a) for p_a in preferences(questions, judge.compare) if p_a is not None]
        curve.append({"round": number, **_win_rate(wins)})
    return curve
