"""A tiny policy with a tiny reward model, and episodes by hand, for the tests of PPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solon.engines.base import GenerateRequest, completions, user
from solon.engines.local import LocalEngine
from solon.models import load_tokenizer, resolve
from solon.settings import Sampling
from solon.training.adapters import using
from solon.training.encoding import Encoder
from solon.training.policy import Actors, open_actors
from solon.training.reward_model import new_reward_model
from solon.training.rollout import Episode
from solon.training_settings import Lora, Reinforce

HEADER = (1, 20, 21, 22, 23, 24, 25, 26, 27)  # Longer than what is worth sharing

EPISODES = (
    Episode((*HEADER, 5, 6, 7), (8, 9), False, "red_team"),
    Episode((*HEADER, 5), (10, 11, 12, 2), True, "helpful"),
    Episode((*HEADER, 6, 7, 8, 9), (13,), False, "red_team", degenerate=True),
    Episode((*HEADER, 9, 8), (14, 15, 16), False, "helpful"),
)
PLAN = [[[[2, 0]], [[3, 1]]]]  # One epoch of two minibatches, each read at once


def settings(**changes: Any) -> Reinforce:
    given = {"episodes": 4, "minibatch": 2, "lora": {"rank": 4, "alpha": 8, "layers": 1}, **changes}
    return Reinforce.model_validate(given)


def actors(model: Path, folder: Path, wanted: Reinforce | None = None, seed: int = 0) -> Actors:
    """Policy and reward model in float32; the reward model's adapter is not at its start."""
    source, wanted = resolve(str(model)), wanted or settings()
    saved = folder / "reward"
    if not saved.exists():
        reward = new_reward_model(source, "cpu", torch.float32, Lora(rank=4, alpha=8), 1)
        stir(reward, 2, scale=0.05)
        reward.get_buffer("mean").fill_(0.25)
        reward.get_buffer("std").fill_(2.0)
        reward.save(saved, load_tokenizer(source))
    return open_actors(source, saved, load_tokenizer(source), wanted, "cpu", torch.float32, seed)


@torch.no_grad()
def stir(module: torch.nn.Module, seed: int, scale: float = 0.02) -> None:
    """Move what is trained off its start, so that adapters differ from their trunk."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def odd_shares(episodes: Sequence[Episode]) -> Tensor:
    """The share of odd token ids in each answer: a reward whose optimum is 1."""
    return torch.tensor([sum(t % 2 for t in e.answer) / len(e.answer) for e in episodes])


class Asker:
    """Samples answers of a policy to one short prompt."""

    def __init__(self, model: Path, made: Actors, tokens: int, temperature: float = 1.0) -> None:
        self._tokenizer = load_tokenizer(resolve(str(model)))
        self._view = made.policy.actor
        self._engine = LocalEngine(self._view.model, self._tokenizer, "policy")
        self._sampling = Sampling(max_tokens=tokens, temperature=temperature)
        self.prompt = Encoder(self._tokenizer).prompt("go")

    def __call__(self, step: int, count: int) -> list[Episode]:
        requests = [GenerateRequest(user("go"), self._sampling, 10_000 * step + i) for i in range(count)]
        with using(self._view.model, self._view.adapter):
            done = completions(self._engine, requests)
        return [Episode(self.prompt, c.token_ids, c.finish == "stop", "red_team") for c in done]
