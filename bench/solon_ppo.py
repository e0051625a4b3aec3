"""Solon's PPO on given prompts, timed: the other side of `bench/trl_ppo.py`, told the same things.

Run: python bench/solon_ppo.py CONFIG.json
CONFIG.json has the fields of `ppo_sides.Settings`.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from ppo_sides import Settings, Steps, read
from prompts import rows
from record import peak_memory_mb
from torch import Tensor

from solon.models import load_tokenizer, resolve
from solon.settings import Sampling
from solon.stages.prompting import Sampler
from solon.training.policy import open_actors
from solon.training.ppo_trainer import PPOTrainer
from solon.training.rollout import Episode
from solon.training_settings import Reinforce


def reinforce(settings: Settings) -> Reinforce:
    """As TRL is told; the rest is Solon's defaults."""
    return Reinforce(
        steps=settings.steps,
        episodes=settings.episodes,
        minibatch=settings.episodes,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        beta=settings.beta,
        critic=settings.critic,
        missing_end_score=None,
        sampling=Sampling(max_tokens=settings.new_tokens, temperature=settings.temperature),
    )


def shuffled(settings: Settings) -> list[str]:
    """The prompts of all steps: passes over all of them, each in a fresh order."""
    rng, chosen = random.Random(settings.seed), list[str]()
    while len(chosen) < settings.steps * settings.episodes:
        chosen += rng.sample(settings.prompts, len(settings.prompts))
    return chosen


def train(settings: Settings) -> None:
    wanted, dtype = reinforce(settings), getattr(torch, settings.dtype)
    source = resolve(settings.model)
    tokenizer = load_tokenizer(source)
    folder = Path(settings.reward)
    actors = open_actors(source, folder, tokenizer, wanted, settings.device, dtype, settings.seed)
    sampler = Sampler(actors.policy.actor, tokenizer, wanted, 16384)
    prompts = rows(shuffled(settings))

    def sample(step: int) -> list[Episode]:
        numbers = range(step * settings.episodes, (step + 1) * settings.episodes)
        return [episode for episode, _ in sampler.answer([prompts[n] for n in numbers], numbers)]

    def reward(episodes: Sequence[Episode]) -> Tensor:
        scores_B = actors.reward.score(episodes) + settings.shift
        unfinished_B = torch.tensor([not e.finished for e in episodes])
        return scores_B - (settings.missing_end_penalty or 0.0) * unfinished_B

    trainer = PPOTrainer(actors.policy, reward, sample, wanted, settings.seed)
    with open(settings.out, "a", encoding="utf-8") as file:
        steps = Steps(file)
        for step in range(settings.steps):
            found = trainer.step(step).metrics
            steps.ended(found["score"], found["kl"], found["entropy"], peak_memory_mb(settings.device))


if __name__ == "__main__":
    train(read(sys.argv[1]))
