"""The loop body of PPO: one step from sampled answers to a better policy, and what a checkpoint must hold.

It knows nothing of recipes' files or run folders: a reward is any function of episodes, and `sample` any
function that gives this process's episodes of a step. A step depends on its number, the seed and the state
alone, so that a run that was killed goes on to the same end.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from solon.digest import seed_from
from solon.errors import RunError
from solon.training.adapters import trainable
from solon.training.advantages import AdaptiveKL, next_multiplier
from solon.training.optimiser import PPO_EPSILON, Optimiser
from solon.training.policy import Policy
from solon.training.ppo import describe, improve, targets
from solon.training.ranks import Ranks
from solon.training.rollout import Episode, Reward, Rollout, evaluate, plan_epochs, shaped
from solon.training_settings import Reinforce

# A sparse reward may well be the same for a first batch; for this many it teaches nothing.
_CONSTANT_STEPS = 3


@dataclass(frozen=True)
class Done:
    """A finished step: figures over all processes, this process's tokens, and how long its parts took."""

    metrics: dict[str, float]
    tokens: int
    timing: dict[str, float]


class PPOTrainer:
    """Policy, reward and optimiser, and the state that changes from step to step."""

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        sample: Callable[[int], Sequence[Episode]],
        settings: Reinforce,
        seed: int,
        sources: Sequence[str] = (),
        ranks: Ranks | None = None,
    ) -> None:
        """`sources` are the kinds of prompts whose scores are told apart."""
        self.policy = policy
        self.optimiser = Optimiser(trainable(policy), settings.learning_rate, PPO_EPSILON)
        self.beta = settings.beta
        self.over_refusal = settings.over_refusal
        self._reward = reward
        self._sample = sample
        self._settings = settings
        self._seed = seed
        self._sources = tuple(sources)
        self._ranks = ranks or Ranks()
        self._varied = False

    def step(self, step: int) -> Done:
        """Sample, score, evaluate, improve.

        Raises:
            RunError: the reward is no number or constant, or the first ratio is not 1. The state before the
                step is that of the last checkpoint.
        """
        settings, start = self._settings, time.monotonic()
        rate = self.optimiser.anneal(step, settings.steps)
        episodes = self._sample(step)
        sampled = time.monotonic()
        with self.policy.holding(episodes):
            rollout, learnt = self._learn(step, episodes)
        found = describe(rollout, self.beta, self._sources, self._ranks)
        held = {"beta": self.beta, "over_refusal": self.over_refusal, "learning_rate": rate}
        metrics = {**found, **learnt, **held}
        self.beta = self._next_beta(found["kl"])
        if settings.over_refusal_target is not None and "refused_helpful" in found:
            excess = found["refused_helpful"] - settings.over_refusal_target
            self.over_refusal = next_multiplier(self.over_refusal, excess)
        timing = {"sampling": sampled - start, "learning": time.monotonic() - sampled}
        return Done(metrics, sum(len(e.answer) for e in episodes), timing)

    def _learn(self, step: int, episodes: Sequence[Episode]) -> tuple[Rollout, dict[str, float]]:
        settings, ranks = self._settings, self._ranks
        priced = settings.model_copy(update={"over_refusal": self.over_refusal})
        scores_B = shaped(self._reward(episodes), episodes, priced)
        self._watch_constant(step, scores_B)
        generator = torch.Generator().manual_seed(seed_from(self._seed, "minibatches", step))
        plan = plan_epochs(episodes, settings, generator, ranks)
        rollout = evaluate(self.policy, episodes, scores_B, plan[0])
        aims = targets(rollout, settings, self.beta, ranks, self._sources)
        warming = step < settings.value_warmup
        learnt = improve(self.policy, self.optimiser, rollout, aims, settings, plan, ranks, warming)
        return rollout, learnt

    def extra(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the optimiser's tensors."""
        return {"beta": self.beta, "over_refusal": self.over_refusal, "varied": self._varied}

    def restore(self, extra: Mapping[str, Any]) -> None:
        """Put back what `extra` gave; nothing where training starts."""
        self.beta = float(extra.get("beta", self.beta))
        self.over_refusal = float(extra.get("over_refusal", self.over_refusal))
        self._varied = bool(extra.get("varied", False))

    def _next_beta(self, kl: float) -> float:
        settings = self._settings
        if settings.kl_target is None:
            return self.beta
        controller = AdaptiveKL(settings.kl_target, settings.kl_horizon)
        return controller.next(self.beta, kl, settings.episodes)

    def _watch_constant(self, step: int, scores_B: torch.Tensor) -> None:
        """Once scores have differed, equal ones are no fault: a policy may reach its reward's optimum."""
        highest = self._ranks.max(float(scores_B.max()))
        lowest = -self._ranks.max(-float(scores_B.min()))
        self._varied = self._varied or highest != lowest
        if not self._varied and step + 1 >= _CONSTANT_STEPS:
            raise RunError(
                f"every answer of the first {_CONSTANT_STEPS} steps has the same score, {highest:g}: there "
                "is nothing to learn. If it is reinforce.missing_end_score, no "
                "answer ends: raise reinforce.sampling.max_tokens; else look at the reward."
            )
