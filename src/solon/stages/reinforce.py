"""Stage 8, reinforce (RL-CAI): PPO against the reward model, with a KL penalty towards the SL model.

Every step draws its prompts, samples and minibatches from its own seed, and its state is saved: a killed
run goes on from the last step. Where this departs from the paper: the critic is a head on the policy's
own trunk, and the reference is the same trunk with its adapters switched off.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from solon.digest import seed_from
from solon.engines.base import GenerateRequest
from solon.engines.local import LocalEngine
from solon.errors import RunError
from solon.models import load_model, load_tokenizer, pick_device, pick_dtype, resolve
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt
from solon.stages.common import asks, choose
from solon.store import StageResult, Workspace
from solon.training.adapters import add_adapter, save_merged, trainable
from solon.training.advantages import AdaptiveKL
from solon.training.batching import minibatches
from solon.training.encoding import Encoded, Encoder
from solon.training.policy import Policy
from solon.training.ppo import evaluate, improve
from solon.training.resumable import Resumable, anneal
from solon.training.reward_model import load_reward_model

_ADAM_EPSILON = 1e-5  # Huang et al. 2022, "The 37 implementation details of PPO", detail 3
_KL_HORIZON = 10_000  # Episodes over which beta adapts (Ziegler et al. 2019, sec. 2.2)


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    trainer = Trainer(recipe, inputs, workspace)
    trainer.train()
    dtype = pick_dtype(recipe.dtype, pick_device(recipe.device))
    save_merged(trainer.policy.model, trainer.tokenizer, workspace.folder / "model", dtype)
    rows = trainer.state.rows()
    return StageResult(
        rows, {"episodes": recipe.reinforce.steps * recipe.reinforce.episodes}, outputs=("model",)
    )


@dataclass(frozen=True)
class Sampled:
    """The answers of one step: encoded episodes, and which of them reached the end token."""

    episodes: list[Encoded]
    finished: list[bool]


class Trainer:
    """Policy, reward model and optimiser of one run, and the loop over its steps."""

    def __init__(self, recipe: Recipe, inputs: Inputs, workspace: Workspace) -> None:
        self._recipe = recipe
        self._settings = recipe.reinforce
        device = pick_device(recipe.device)
        dtype = pick_dtype(recipe.dtype, device)
        source = resolve(str(inputs.folders["finetune"] / "model"))
        self._accelerator = Accelerator(cpu=device == "cpu")
        self.tokenizer = load_tokenizer(source)
        self._encoder = Encoder(self.tokenizer)
        seed = seed_from(recipe.seed, "policy") % 2**31
        adapted = add_adapter(load_model(source, device, dtype), self._settings.lora, seed)
        self.policy = Policy(adapted, self._settings.sampling.temperature).to(device).eval()
        self._engine = LocalEngine(self.policy.causal_model(), self.tokenizer, "rl", recipe.batch_tokens)
        self._reward = load_reward_model(inputs.folders["reward"] / "model", source, device, dtype)
        moved = list(trainable(self.policy).values())
        self._optimiser = torch.optim.AdamW(
            moved, lr=self._settings.learning_rate, eps=_ADAM_EPSILON, weight_decay=0.0
        )
        self.state = Resumable(workspace, self.policy, self._optimiser)
        self._prompts = self._draw_prompts(inputs.rows("red_team", Prompt))
        self._workspace = workspace

    def train(self) -> None:
        """All steps that are not done yet. Raises RunError at a loss that is no number."""
        settings = self._settings
        first, saved = self.state.resume()
        beta = float(saved.get("beta", settings.beta))
        wrapped = self._accelerator.prepare(self.policy)
        with self._workspace.reporter.task("reinforce", settings.steps, "steps") as advance:
            advance(first)
            for step in range(first, settings.steps):
                beta = self._step(step, beta, wrapped)
                advance(1)

    def _step(self, step: int, beta: float, wrapped: torch.nn.Module) -> float:
        """One rollout and its epochs; the KL coefficient of the next step."""
        start, settings = time.monotonic(), self._settings
        anneal(self._optimiser, settings.learning_rate, step, settings.steps)
        sampled = self._sample(step)
        scores = self._reward.score([e.ids for e in sampled.episodes])
        generator = torch.Generator().manual_seed(seed_from(self._recipe.seed, "minibatches", step))
        plan = [minibatches(settings.episodes, settings.minibatch, generator) for _ in range(settings.epochs)]
        rollout = evaluate(self.policy, sampled.episodes, sampled.finished, scores, settings, plan[0])
        metrics = improve(
            wrapped,
            self._optimiser,
            rollout,
            settings,
            beta,
            plan,
            self._accelerator.backward,
            self._sum_over_ranks,
        )
        tokens = sum(len(e.answer) for e in sampled.episodes)
        self.state.record(step, "solon.ppo", metrics, tokens, time.monotonic() - start)
        beta = self._next_beta(beta, metrics["kl"])
        self.state.save(step + 1, beta=beta)
        return beta

    def _sum_over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums over all processes; they travel on the accelerator's device, as NCCL wants them."""
        total: torch.Tensor = self._accelerator.reduce(sums.to(self._accelerator.device), "sum")
        return total.cpu()

    def _next_beta(self, beta: float, kl: float) -> float:
        if self._settings.kl_target is None:
            return beta
        controller = AdaptiveKL(self._settings.kl_target, _KL_HORIZON)
        return controller.next(beta, kl, self._settings.episodes)

    def _sample(self, step: int) -> Sampled:
        """Answers of the current policy to the step's prompts, without top-k or top-p."""
        settings, count = self._settings, self._settings.episodes
        prompts = [self._prompts[(step * count + i) % len(self._prompts)] for i in range(count)]
        requests = [
            GenerateRequest(asks(p.text), settings.sampling, seed_from(self._recipe.seed, "episode", step, i))
            for i, p in enumerate(prompts)
        ]
        completions = self._engine.generate(requests)
        episodes = [
            Encoded(self._prompt(p.text), c.token_ids) for p, c in zip(prompts, completions, strict=True)
        ]
        return Sampled(episodes, [c.finish == "stop" for c in completions])

    def _prompt(self, text: str) -> tuple[int, ...]:
        ids = self._encoder.prompt(text)
        if len(ids) > self._settings.max_prompt_tokens:
            raise RunError(
                f"a prompt has {len(ids)} tokens, more than reinforce.max_prompt_tokens="
                f"{self._settings.max_prompt_tokens}: “{text[:60]}…”. Raise the setting or shorten it."
            )
        return ids

    def _draw_prompts(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The order of prompts over the run: red-team and helpful ones mixed in the set proportion."""
        settings, seed = self._settings, self._recipe.seed
        total = settings.steps * settings.episodes
        rng = random.Random(seed_from(seed, "prompts"))
        red = choose(prompts, "red_team", "train", total, seed)
        helpful = choose(prompts, "helpful", "train", total, seed) if settings.helpful_share else []
        mixed = []
        for index in range(total):
            source = helpful if rng.random() < settings.helpful_share else red
            mixed.append(source[index % len(source)])
        return mixed
