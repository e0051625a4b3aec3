"""What several stages share: opening engines, choosing prompts, planning batches, making rows."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from solon.constitution import Purpose
from solon.digest import seed_from
from solon.engines.base import Completion, Engine, GenerateRequest, Message, completions
from solon.engines.local import LocalEngine, open_engine
from solon.engines.opening import open_role
from solon.errors import RunError
from solon.feedback.calibration import Calibrated, Calibration
from solon.feedback.opening import Bench, reopen
from solon.feedback.probe_file import PROBE, load_probe
from solon.models import ModelSource, pick_device, pick_dtype, resolve
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt, PromptKind, Split, TextKind, Written
from solon.roles import RoleName
from solon.settings import Sampling
from solon.tables import Rows

Item = TypeVar("Item")
PICKED = "judge.json"  # The kind and the calibration of the judge that the preflight picked.


def engine_for(recipe: Recipe, source: ModelSource) -> LocalEngine:
    """The recipe's engine on a model. Training stages load their models themselves."""
    device = pick_device(recipe.device)
    return open_engine(source, device, pick_dtype(recipe.dtype, device), recipe.batch_tokens)


def sl_model(inputs: Inputs) -> ModelSource:
    """The model that fine-tuning has made."""
    return resolve(str(inputs.folders["finetune"] / "model"))


def role_engine(
    recipe: Recipe, inputs: Inputs, name: RoleName, open_already: Mapping[str, LocalEngine] | None = None
) -> Engine:
    """The role's engine: one that is `open_already` here, by its model's identity, or a new one."""
    role, source = recipe.role(name), inputs.models[name]
    known = (open_already or {}).get(source.identity) if role.engine == "local" else None
    if known is not None:
        return known
    return open_role(recipe.section(name), role, source, recipe.device, recipe.dtype, recipe.batch_tokens)


def judge_bench(recipe: Recipe, inputs: Inputs, engine: Engine, purpose: Purpose) -> Bench:
    """What a judge of the recipe is opened with: the evaluator for evaluation principles."""
    settings = recipe.judge_of("judge" if purpose == "training" else "evaluator")
    return Bench(settings, inputs.constitution, engine, purpose, recipe.seed)


def picked_judge(recipe: Recipe, inputs: Inputs, engine: Engine) -> Calibrated:
    """The judge that the preflight picked, with its calibration."""
    folder = inputs.folders["preflight"]
    picked = json.loads((folder / PICKED).read_text(encoding="utf-8"))
    calibration = Calibration.from_dict(picked["calibration"])
    fitted = load_probe(folder / PROBE) if picked["kind"] == "linear_probe" else None
    return reopen(picked["kind"], calibration, judge_bench(recipe, inputs, engine, "training"), fitted)


def choose(
    prompts: Sequence[Prompt],
    split: Split,
    counts: Mapping[PromptKind, int],
    seed: int,
    after: Mapping[PromptKind, int] | None = None,
) -> Sequence[Prompt]:
    """Up to so many prompts of each kind, of one split, in an order drawn by the seed.

    The order is a circle; `after` is the number of prompts of each kind that are passed over first.
    """
    rows = Rows.of(prompts, Prompt)
    named = list(zip(rows.column("id"), rows.column("kind"), rows.column("split"), strict=True))
    passed = after or {}
    chosen = [
        place
        for kind, count in counts.items()
        if count
        for place in _drawn(named, kind, split, seed, passed.get(kind, 0))[:count]
    ]
    return rows.take(chosen)


def choose_fresh(
    recipe: Recipe, prompts: Sequence[Prompt], counts: Mapping[PromptKind, int]
) -> Sequence[Prompt]:
    """Training prompts that fine-tuning has not learned from, then, if those do not suffice, the others.

    To a prompt that it has learned from, the SL model gives the answer that it learned: such prompts show
    little of what is still wrong, and several answers to one differ little.
    """
    read: Mapping[PromptKind, int] = {"red_team": recipe.revise.prompts, "helpful": recipe.revise.helpful}
    return choose(prompts, "train", counts, recipe.seed, read)


def _drawn(
    named: Sequence[tuple[str, str, str]], kind: PromptKind, split: Split, seed: int, passed: int
) -> list[int]:
    """The places of the prompts of (id, kind, split), from that behind the passed ones on."""
    mine = [(name, place) for place, (name, *of) in enumerate(named) if of == [kind, split]]
    there = [place for _, place in sorted(mine)]
    if not there:
        raise RunError(
            f"there is no {split} prompt of kind {kind}. Add prompts under red_team.sources or "
            "red_team.helpful, or change red_team.heldout."
        )
    random.Random(seed_from(seed, kind, split)).shuffle(there)
    start = min(passed, len(there)) % len(there)
    return there[start:] + there[:start]


def in_batches(items: Sequence[Item], size: int) -> list[tuple[str, Sequence[Item]]]:
    """A plan: named batches of `size` items, the same in every attempt."""
    return [(f"{start:06d}", items[start : start + size]) for start in range(0, len(items), size)]


def written(
    prompt: Prompt,
    completion: Completion,
    *,
    kind: TextKind,
    request: str,
    sampling: Sampling,
    origin: str,
    number: int = 0,
    parents: tuple[str, ...] | None = None,
) -> Written:
    """The row of a generated text, fresh from the engine."""
    return Written(
        parents=parents or (prompt.id,),
        origin=origin,
        prompt_id=prompt.id,
        prompt=prompt.text,
        prompt_kind=prompt.kind,
        kind=kind,
        number=number,
        text=completion.text,
        request=request,
        sampling=json.dumps(sampling.model_dump()),
        tokens=completion.new_tokens,
        finish=completion.finish,
    )


def several(
    engine: Engine, prompts: Sequence[Prompt], count: int, sampling: Sampling, kind: TextKind, seed: int
) -> list[Written]:
    """So many texts of the SL model to each prompt."""
    stem = "sample" if kind == "answer" else kind
    asked = [(prompt, number) for prompt in prompts for number in range(count)]
    requests = [
        GenerateRequest(asks(prompt.text), sampling, seed_from(seed, prompt.id, stem, number))
        for prompt, number in asked
    ]
    return [
        written(
            prompt,
            completion,
            kind=kind,
            request=prompt.text,
            sampling=sampling,
            origin="sl",
            number=number,
        )
        for (prompt, number), completion in zip(asked, completions(engine, requests), strict=True)
    ]


def asks(prompt: str) -> tuple[Message, ...]:
    return (Message("user", prompt),)


def or_least(probability: float | None) -> float:
    """A judge's probability to rank by: what was not scored comes behind everything that was."""
    return -1.0 if probability is None else probability
