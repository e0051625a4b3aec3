"""Stage 7, reward: a preference model learns the judge's soft labels.

Soft Bradley-Terry loss (Bai et al. 2022, sec. 4.1: soft labels beat hard ones); pairs of held-out
prompts measure its accuracy and calibration; scores are normalised on the sampled answers.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from solon.digest import seed_from
from solon.errors import RunError
from solon.models import ModelSource, load_tokenizer, pick_device, pick_dtype
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Label, Prompt, PromptKind
from solon.report.statistics import bootstrap_ratio, ece, reliability
from solon.stages.common import sl_model
from solon.store import StageResult, Workspace
from solon.training.adapters import trainable
from solon.training.encoding import Encoded, Encoder
from solon.training.head_start import PAIRS, Linear, fit_gate, fit_head
from solon.training.losses import soft_bradley_terry
from solon.training.optimiser import Optimiser
from solon.training.resumable import Resumable
from solon.training.reward_model import Gate, RewardModel, new_reward_model
from solon.training.views import ReadAt

_RESAMPLES = 1000
_REFERENCE = 128  # Answers that set mean and deviation: a standard error of the mean below 0.1


@dataclass(frozen=True)
class EncodedPair:
    """Two encoded answers to a prompt and the probability that the first is preferred.

    `crossed`: one of them was sampled for another prompt.
    """

    prompt_id: str
    a: Encoded
    b: Encoded
    p_a: float
    kind: PromptKind = "red_team"
    crossed: bool = False


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt whose kind is known: what a gate learns from. What stands behind it is of no matter."""

    prompt_id: str
    row: Encoded
    kind: PromptKind


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    source = sl_model(inputs)
    tokenizer = load_tokenizer(source)
    encoder = Encoder(tokenizer)
    train, test = split_pairs(inputs.rows("label", Label), encoder, recipe)
    gated = recipe.reward.gated
    prompts = asked(inputs.rows("red_team", Prompt), test, encoder, recipe) if gated else []
    model = untrained(recipe, source, train, prompts)
    trainer = _fit(recipe, model, train, workspace)
    model.normalise_on(reference([*train, *test], recipe.seed))
    model.save(workspace.folder / "model", tokenizer)
    return StageResult(trainer.rows(), held_out(model, test), outputs=("model",))


def untrained(
    recipe: Recipe, source: ModelSource, train: Sequence[EncodedPair], prompts: Sequence[AskedPrompt]
) -> RewardModel:
    """The reward model before its first step, its head where the recipe lets it start."""
    device, settings = pick_device(recipe.device), recipe.reward
    dtype, seed = pick_dtype(recipe.dtype, device), seed_from(recipe.seed, "reward")
    at = ReadAt(settings.depth, settings.pooling)
    model = new_reward_model(source, device, dtype, settings.lora, seed, at, settings.gated)
    if settings.head != "random":
        start_head(model, train, recipe.seed, prompts)
    return model


def reference(pairs: Sequence[EncodedPair], seed: int) -> list[Encoded]:
    """Answers that set mean and deviation: as the policy gives them, so none of another prompt."""
    own = different_answers([pair for pair in pairs if not pair.crossed])
    answers = sorted(own, key=lambda e: e.ids)
    return random.Random(seed_from(seed, "reference")).sample(answers, min(_REFERENCE, len(answers)))


def different_answers(pairs: Sequence[EncodedPair]) -> list[Encoded]:
    """The pairs' answers, each once, in the order of the pairs."""
    return list(dict.fromkeys(e for pair in pairs for e in (pair.a, pair.b)))


def _sides(pairs: Sequence[EncodedPair], answers: Sequence[Encoded]) -> tuple[list[int], list[int]]:
    """Where the first and the second answer of each pair stand among the answers."""
    place = {e: i for i, e in enumerate(answers)}
    return [place[pair.a] for pair in pairs], [place[pair.b] for pair in pairs]


@torch.no_grad()
def start_head(
    model: RewardModel, pairs: Sequence[EncodedPair], seed: int, prompts: Sequence[AskedPrompt] = ()
) -> None:
    """Let the head, and its gate, start as logistic regressions on what they read of these pairs.

    The gate learns from `prompts` as well: to tell the kinds apart it needs no answers. The adapter is
    new and changes nothing yet, so it is not computed.
    """
    chosen = random.Random(seed_from(seed, "head")).sample(pairs, min(PAIRS, len(pairs)))
    answers = different_answers(chosen)
    features_nD = model.features(answers, adapted=False).answer_BD.double().numpy()
    a_n, b_n = _sides(chosen, answers)
    gates_n = None
    if model.gate is not None:
        own = [AskedPrompt(pair.prompt_id, pair.a, pair.kind) for pair in chosen]
        opened = _start_gate(model, model.gate, [*own, *prompts])
        gates_n = np.array([opened[pair.prompt_id] for pair in chosen])
    p_n = np.array([p.p_a for p in chosen])
    head = fit_head(features_nD[a_n], features_nD[b_n], p_n, [p.prompt_id for p in chosen], gates_n)
    _start(model.head, head.common)
    if model.gate is not None and head.by_kind is not None:
        _start(model.gate.by_kind, head.by_kind)


def _start_gate(model: RewardModel, gate: Gate, prompts: Sequence[AskedPrompt]) -> dict[str, float]:
    """Fit the gate on each prompt once; how far it opens, unseen, for every prompt's id."""
    one_each = {prompt.prompt_id: prompt for prompt in prompts}
    rows = [prompt.row for prompt in one_each.values()]
    states_nD = model.features(rows, adapted=False).prompt_BD.double().numpy()
    red_team_n = np.array([prompt.kind == "red_team" for prompt in one_each.values()])
    fitted, unseen_n = fit_gate(states_nD, red_team_n, list(one_each))
    _start(gate.kind, fitted)
    return dict(zip(one_each, np.tanh(unseen_n / 2).tolist(), strict=True))


def asked(
    prompts: Sequence[Prompt], test: Sequence[EncodedPair], encoder: Encoder, recipe: Recipe
) -> list[AskedPrompt]:
    """The training prompts that no held-out pair has: the gate must not know what tests it.

    Prompts that leave no room for an answer are left out.
    """
    held_out_prompts = {pair.prompt_id for pair in test}
    rows = [
        AskedPrompt(p.id, encoder.encode(p.text, "", "stop", recipe.reward.max_tokens), p.kind)
        for p in prompts
        if p.split == "train" and p.id not in held_out_prompts
    ]
    return [row for row in rows if row.row.answer]


def _start(layer: nn.Linear, at: Linear) -> None:
    layer.weight.copy_(torch.from_numpy(at.weight_D))
    layer.bias.fill_(at.bias)


def split_pairs(
    labels: Sequence[Label], encoder: Encoder, recipe: Recipe
) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Training and held-out pairs, by prompt, so that no prompt is in both.

    A pair whose prompt leaves no room for both answers is left out: nothing tells them apart.

    Raises:
        RunError: one of the two is empty.
    """
    settings = recipe.reward
    sides: tuple[list[EncodedPair], list[EncodedPair]] = ([], [])
    usable = [label for label in labels if label.p_a is not None and label.dropped is None]
    held_out_prompts = heldout_prompts([label.prompt_id for label in usable], settings.heldout)
    for label in usable:
        assert label.p_a is not None
        a = encoder.encode(label.prompt, label.a, label.a_finish, settings.max_tokens)
        b = encoder.encode(label.prompt, label.b, label.b_finish, settings.max_tokens)
        if not (a.answer and b.answer):
            continue
        held = label.prompt_id in held_out_prompts
        pair = EncodedPair(label.prompt_id, a, b, label.p_a, label.prompt_kind, label.crossed)
        sides[held].append(pair)
    if not all(sides):
        raise RunError(
            f"the reward model has {len(sides[0])} training and {len(sides[1])} held-out pairs; "
            "it needs both. Raise sample.prompts or label.pairs, or reward.max_tokens if prompts fill it."
        )
    _check_own(*sides)
    return sides


def _check_own(train: Sequence[EncodedPair], test: Sequence[EncodedPair]) -> None:
    """Refuse, before the training, pairs of which too few are of a prompt's own answers."""
    if len({e for pair in (*train, *test) if not pair.crossed for e in (pair.a, pair.b)}) < 2:
        raise RunError(
            "no prompt has two different answers with a label: nothing tells how far scores spread. Raise "
            "sample.answers or sample.sampling.temperature."
        )
    if not any(pair.p_a != 0.5 for pair in test if not pair.crossed):
        raise RunError(
            "no held-out pair of a prompt's own answers has a preference: nothing would measure the reward "
            "model. Raise reward.heldout or label.pairs, or choose another judge if it says 0.5 everywhere."
        )


def heldout_prompts(prompt_ids: Sequence[str], share: float) -> set[str]:
    """The prompts whose pairs test the model: `share` of them, those that come first by a hash."""
    ordered = sorted(set(prompt_ids), key=lambda prompt: seed_from("reward", prompt))
    most = max(1, len(ordered) - 1)  # One is left to train on
    return set(ordered[: min(most, max(1, round(share * len(ordered))))])


def _fit(recipe: Recipe, model: RewardModel, pairs: Sequence[EncodedPair], workspace: Workspace) -> Resumable:
    settings = recipe.reward.optimiser
    optimiser = Optimiser(trainable(model), settings.learning_rate)
    plan = plan_steps([p.prompt_id for p in pairs], settings.batch, settings.epochs, recipe.seed)
    state = Resumable(workspace, optimiser)
    first, _ = state.resume()
    with workspace.reporter.task("reward", len(plan), "steps") as advance:
        advance(first)
        for step in range(first, len(plan)):
            start = time.monotonic()
            optimiser.anneal(step, len(plan))
            metrics, tokens = learn(model, optimiser, [pairs[i] for i in plan[step]], settings.max_grad_norm)
            state.record(step, "solon.reward", metrics, tokens, time.monotonic() - start)
            if (step + 1) % settings.save_every == 0 or step + 1 == len(plan):
                state.save(step + 1)
            advance(1)
    return state


def plan_steps(prompts: Sequence[str], size: int, epochs: int, seed: int) -> list[list[int]]:
    """The pairs of every step, known before the first is done; `prompts` are the pairs' prompt ids.

    Prompts are shuffled anew each epoch and their pairs stay together, so that a step reads an answer
    once for all of its pairs (Ouyang et al. 2022, sec. 3.5, which also found that this overfits less).
    """
    plan: list[list[int]] = []
    for epoch in range(epochs):
        order = sorted(set(prompts))
        random.Random(seed_from(seed, "reward epoch", epoch)).shuffle(order)
        rank = {prompt: i for i, prompt in enumerate(order)}
        pairs = sorted(range(len(prompts)), key=lambda i: (rank[prompts[i]], i))
        plan.extend(pairs[start : start + size] for start in range(0, len(pairs), size))
    return plan


def learn(
    model: RewardModel, optimiser: Optimiser, pairs: Sequence[EncodedPair], max_norm: float
) -> tuple[dict[str, float], int]:
    """One optimisation step on these pairs, each answer read once: its figures and the tokens read."""
    answers = different_answers(pairs)
    a_P, b_P = _sides(pairs, answers)
    scores_B = model(answers)
    delta_P = scores_B[a_P] - scores_B[b_P]
    p_P = torch.tensor([p.p_a for p in pairs], device=scores_B.device)
    loss = soft_bradley_terry(delta_P, p_P)
    torch.autograd.backward(loss)
    norm = optimiser.step(max_norm)
    agrees_P = ((delta_P > 0) == (p_P > 0.5)).float().masked_fill(p_P == 0.5, 0.5)
    metrics = {"loss": float(loss.detach()), "accuracy": float(agrees_P.mean()), "grad_norm": norm}
    return metrics, sum(len(e.ids) for e in answers)


def held_out(model: RewardModel, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """Agreement with the judge's preference on pairs never trained on, and calibration against it.

    Both are of the prompts' own answers; `by_pairs` has the others as well.
    """
    scores = model.score([p.a for p in pairs] + [p.b for p in pairs])
    std = float(model.get_buffer("std"))
    # Normalised scores differ by std from the logits that the loss was fitted on.
    predicted = torch.sigmoid((scores[: len(pairs)] - scores[len(pairs) :]) * std).tolist()
    told = list(zip(pairs, predicted, strict=True))
    own = [(pair, p) for pair, p in told if not pair.crossed]
    said, labels = [p for _, p in own], [pair.p_a for pair, _ in own]
    bins = reliability(said, labels)
    agreement = _agreement(own)
    accuracy = agreement.pop("accuracy")
    return {
        "heldout_accuracy": accuracy,
        **agreement,
        "by_pairs": _by_pairs(told),
        "ece": ece(said, labels),
        "reliability": [{"predicted": b.predicted, "observed": b.observed, "n": b.n} for b in bins],
        "mean": float(model.get_buffer("mean")),
        "std": std,
    }


def _by_pairs(told: Sequence[tuple[EncodedPair, float]]) -> list[dict[str, Any]]:
    """Agreement on each sort of pair: one figure for all hides a model that likes every refusal."""
    found: dict[tuple[str, bool], list[tuple[EncodedPair, float]]] = {}
    for pair, p in told:
        if pair.p_a != 0.5:
            found.setdefault((pair.kind, pair.crossed), []).append((pair, p))
    return [
        {"kind": kind, "crossed": crossed, **_agreement(of_sort)}
        for (kind, crossed), of_sort in sorted(found.items())
    ]


def _agreement(told: Sequence[tuple[EncodedPair, float]]) -> dict[str, Any]:
    """How often the model prefers what the judge does, over pairs with a preference.

    Pairs of one prompt share their answers: the interval draws prompts anew, not pairs.
    """
    right: dict[str, list[bool]] = {}
    for pair, p in told:
        if pair.p_a != 0.5:
            right.setdefault(pair.prompt_id, []).append((p > 0.5) == (pair.p_a > 0.5))
    hits, counts = [sum(own) for own in right.values()], [len(own) for own in right.values()]
    return {
        "accuracy": sum(hits) / sum(counts),
        "ci95": list(bootstrap_ratio(hits, counts, _RESAMPLES, 0)),
        "n": sum(counts),
        "prompts": len(right),
    }
