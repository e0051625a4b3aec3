"""RLOO, GRPO and DPO in the place of PPO, or beside it, by TRL: `training.neighbours` bound to a run."""

from pathlib import Path
from typing import Literal

import torch

from solon.digest import seed_from
from solon.engines.local import context_of
from solon.models import load_model, load_tokenizer, pick_device, pick_dtype
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Label, Prompt, Step
from solon.stages.common import sl_model
from solon.stages.prompting import Mixture, check_lengths, draw_prompts
from solon.stages.shaping import open_reward
from solon.store import Workspace
from solon.training.adapters import save_merged
from solon.training.encoding import Encoder
from solon.training.neighbours import OnlinePrompt, Setup, preference_pairs, train_dpo, train_online
from solon.training.reward_model import load_reward_model
from solon.training.step_log import StepLog

Neighbour = Literal["rloo", "grpo", "dpo"]


def train(
    algorithm: Neighbour,
    recipe: Recipe,
    inputs: Inputs,
    workspace: Workspace,
    folder: Path,
    mixed: Mixture,
) -> list[Step]:
    """Train and save the model into `folder`, unless it is there already; the steps.

    Raises:
        UsageError: a step's answers do not make whole minibatches, or a prompt does not fit.
        RunError: a score, loss or gradient is no number.
    """
    log = StepLog(workspace, algorithm)
    if not folder.exists():
        _train(algorithm, recipe, inputs, workspace, log, folder, mixed)
    return log.rows()


def _train(
    algorithm: Neighbour,
    recipe: Recipe,
    inputs: Inputs,
    workspace: Workspace,
    log: StepLog,
    folder: Path,
    mixed: Mixture,
) -> None:
    settings, device = recipe.reinforce, pick_device(recipe.device)
    dtype = pick_dtype(recipe.dtype, device)
    source = sl_model(inputs)
    tokenizer = load_tokenizer(source)
    # TRL repeats the steps that are done when it goes on, and they are journalled anew.
    log.keep(0)
    total = settings.steps
    if algorithm == "dpo":
        pairs = preference_pairs(inputs.rows("label", Label), Encoder(tokenizer), recipe.reward.max_tokens)
        total = settings.epochs * -(-len(pairs) // settings.minibatch)
    with workspace.reporter.task(algorithm, total, "steps") as advance:

        def on_step(step: int, metrics: dict[str, float]) -> None:
            log.write(step, f"trl.{algorithm}", metrics)
            advance(1)

        # Trained whole, TRL moves the weights themselves: a small step would be lost in bfloat16.
        setup = Setup(
            load_model(source, device, torch.float32 if settings.method == "full" else dtype),
            tokenizer,
            settings,
            seed_from(recipe.seed, algorithm) % 2**31,
            device,
            workspace.folder / "checkpoint" / algorithm,
            on_step,
        )
        if algorithm == "dpo":
            trained = train_dpo(setup, pairs)
        else:
            trunk = load_model(source, device, dtype)
            reward_model = load_reward_model(inputs.folders["reward"] / "model", trunk, tokenizer)
            reward = open_reward(recipe, inputs, reward_model)
            asked = _asked(recipe, inputs, mixed)
            check_lengths(asked, Encoder(tokenizer), settings, context_of(trunk))
            online = [OnlinePrompt(prompt.text, prompt.kind) for prompt in asked]
            trained = train_online(algorithm, setup, online, reward)
    save_merged(trained, tokenizer, folder, dtype)


def _asked(recipe: Recipe, inputs: Inputs, mixed: Mixture) -> list[Prompt]:
    """PPO's prompts in PPO's order, of which a group of answers each takes one."""
    count = recipe.reinforce.steps * recipe.reinforce.episodes
    every = inputs.rows("red_team", Prompt)
    return draw_prompts(recipe, every, mixed, count)[: count // recipe.reinforce.group]
