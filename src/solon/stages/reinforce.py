"""Stage 8, reinforce (RL-CAI): PPO against the reward model, with a KL penalty towards the SL model.

Every step draws its prompts, samples and minibatches from its own seed, and its state is saved: a killed
run goes on from the last step. Where this departs from the paper: the critic is a head on the policy's
own trunk (or an adapter that starts as the reward model), and the reference is the same trunk without
adapters. Under torchrun or `accelerate launch` every process samples and learns its share of each batch.

With `algorithm` the same prompts and the same reward go to a neighbour of PPO instead, or as well.
"""

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from solon.digest import seed_from
from solon.engines.hooks import divided
from solon.models import ModelSource, load_model, load_tokenizer, pick_device, pick_dtype
from solon.pipeline import Inputs
from solon.plan import model_folder, rl_models
from solon.recipe import Recipe
from solon.records import PPO, Prompt, PromptKind, Step
from solon.stages.common import sl_model
from solon.stages.neighbour import train as train_neighbour
from solon.stages.openings import MIXTURE, OPENINGS, mixture
from solon.stages.prompting import Mixture, Sampler, StepSampler, draw_prompts, draw_watched
from solon.stages.rating import Watch
from solon.stages.shaping import open_reward
from solon.store import StageResult, Workspace
from solon.training import sharding
from solon.training.adapters import add_adapter, save_merged
from solon.training.policy import POLICY, Actors, open_actors
from solon.training.ppo_trainer import PPOTrainer
from solon.training.ranks import Ranks
from solon.training.resumable import Resumable

SOURCES = get_args(PromptKind)


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    algorithms = recipe.reinforce.algorithm
    names = rl_models(recipe)
    mixed, metrics = Mixture(0.0), {"algorithms": list(algorithms)}
    if set(algorithms) - {"dpo"}:  # DPO learns from the labels, and asks nothing
        mixed = mixture(recipe, inputs, workspace)
        metrics |= mixed.figures()
    rows: list[Step] = []
    for name, algorithm in names.items():
        folder = workspace.folder / model_folder(name)
        if algorithm == "ppo":
            steps, figures = _ppo(recipe, inputs, workspace, folder, mixed)
            metrics |= figures
        else:
            steps = train_neighbour(algorithm, recipe, inputs, workspace, folder, mixed)
        rows += steps
    told = [file for file in (OPENINGS, MIXTURE) if (workspace.folder / file).exists()]
    return StageResult(rows, metrics, outputs=(*map(model_folder, names), *told))


def _ppo(
    recipe: Recipe, inputs: Inputs, workspace: Workspace, folder: Path, mixed: Mixture
) -> tuple[list[Step], dict[str, Any]]:
    """Train by PPO, from the last checkpoint if there is one, and save the model into `folder`."""
    training = _Training.open(recipe, inputs, workspace, mixed)
    training.run()
    training.accelerator.end_training()
    if not training.main:
        return [], {}
    training.save(folder)
    return training.state.rows(), training.metrics()


def _ranks(actors: Actors, accelerator: Accelerator, pieces: bool) -> Ranks:
    """The processes; with `pieces` the trunk is divided among them."""
    place = (accelerator.process_index, accelerator.num_processes, accelerator.device)
    if not pieces:
        return Ranks(*place)
    trunk = actors.policy.actor.model
    heads = (actors.policy.value_head, actors.reward.readers())
    return Ranks(*place, sharding.Divided(trunk, accelerator.device, heads).settle)


@dataclass
class _Training:
    """PPO on a recipe: the trainer, its checkpoints and the guard."""

    recipe: Recipe
    workspace: Workspace
    source: ModelSource
    tokenizer: Any
    actors: Actors
    trainer: PPOTrainer
    state: Resumable
    watch: Watch
    ranks: Ranks
    accelerator: Accelerator

    @classmethod
    def open(cls, recipe: Recipe, inputs: Inputs, workspace: Workspace, mixed: Mixture) -> "_Training":
        settings, device = recipe.reinforce, pick_device(recipe.device)
        # The others wait while the first process rates samples with the judge, which may take long.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
        accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])
        pieces = sharding.wanted() and accelerator.num_processes > 1
        if pieces:
            sharding.check(settings)
        source = sl_model(inputs)
        tokenizer = load_tokenizer(source)
        actors = open_actors(
            source,
            inputs.folders["reward"] / "model",
            tokenizer,
            settings,
            "cpu" if pieces else str(accelerator.device),
            pick_dtype(recipe.dtype, device),
            seed_from(recipe.seed, "policy") % 2**31,
        )
        ranks = _ranks(actors, accelerator, pieces)
        if pieces and ranks.rank == 0:
            workspace.events.write("divided", stage=workspace.stage, processes=ranks.count)
        reward = open_reward(recipe, inputs, actors.reward)
        rows = inputs.rows("red_team", Prompt)
        count = settings.steps * settings.episodes // settings.answers_each
        prompts = draw_prompts(recipe, rows, mixed, count)
        watched = draw_watched(recipe, rows)
        sampler = Sampler(actors.policy.actor, tokenizer, settings, recipe.batch_tokens)
        sampler.check([*prompts, *watched])
        sample = StepSampler(sampler, prompts, recipe, ranks)
        trainer = PPOTrainer(actors.policy, reward, sample, settings, recipe.seed, SOURCES, ranks)
        state = Resumable(workspace, trainer.optimiser, "ppo", ranks.rank == 0)
        watch = Watch(recipe, inputs, sampler, reward, watched, workspace.folder / "checkpoint" / "good")
        parts = (actors, trainer, state, watch, ranks, accelerator)
        return cls(recipe, workspace, source, tokenizer, *parts)

    @property
    def main(self) -> bool:
        return self.ranks.rank == 0

    def run(self) -> None:
        """All steps that are not done yet, or until the guard stops them.

        Raises:
            RunError: a figure or the reward is no number, the reward is constant, or a process has gone.
        """
        steps = self.recipe.reinforce.steps
        first, saved = self.state.resume()
        self.trainer.restore(saved)
        if "guard" in saved:
            self.watch.restore(saved["guard"])
        elif self.main and self.recipe.reinforce.guard.every:
            self.watch.begin(self.trainer.optimiser.masters())
        with self.workspace.reporter.task("reinforce", steps, "steps") as advance:
            advance(first)
            for step in range(first, steps):
                if self.watch.stopped:
                    break
                self._step(step)
                advance(1)

    def _step(self, step: int) -> None:
        start = time.monotonic()
        done = self.trainer.step(step)
        self.state.record(step, PPO, done.metrics, done.tokens, time.monotonic() - start, done.timing)
        if self.watch.due(step + 1):
            self._check(step + 1)
        self.state.save(step + 1, **self.trainer.extra(), guard=self.watch.state())
        if self.main:
            self.watch.tidy()

    def _check(self, step: int) -> None:
        """The main process rates; all learn whether to stop."""
        stop = 0.0
        if self.main:
            found = self.watch.check(step, self.trainer.optimiser.masters())
            self.workspace.events.write("guard", stage=self.workspace.stage, **found.as_dict())
            stop = float(found.over_optimised)
        if self.ranks.max(stop) and not self.main:
            self.watch.stop()

    def save(self, folder: Path) -> None:
        """Write the trained model, or the best one that the guard has seen if it has stopped."""
        masters = self.trainer.optimiser.masters()
        if self.watch.stopped:
            masters = self.watch.good_tensors()
        dtype = pick_dtype(self.recipe.dtype, pick_device(self.recipe.device))
        prefix = "trunk."  # Where the policy's weights lie among those of policy and critic.
        own = {n.removeprefix(prefix): t for n, t in masters.items() if n.startswith(prefix)}
        save_merged(self._whole(), self.tokenizer, folder, dtype, POLICY, own)

    def _whole(self) -> Any:
        """The policy, to be saved; read anew where it lies in pieces."""
        if not divided(self.actors.policy.actor.model):
            return self.actors.whole
        model = load_model(self.source, "cpu", torch.float32)
        return add_adapter(model, self.recipe.reinforce.lora, 0, POLICY)

    def metrics(self) -> dict[str, Any]:
        settings, done = self.recipe.reinforce, len(self.state.rows())
        found: dict[str, Any] = {
            "episodes": done * settings.episodes,
            "processes": self.ranks.count,
        }
        if self.watch.evidence:
            found["guard"] = [e.as_dict() for e in self.watch.evidence]
            found["kept"] = self.watch.good if self.watch.stopped else done
        return found
