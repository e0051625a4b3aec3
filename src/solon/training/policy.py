"""Policy, critic and reference of PPO: views of one trunk, or of two where the policy is trained whole.

The policy is an adapter and its reference the same trunk without it. The critic is a head on the policy's
own states (fast), or an adapter of its own that starts as the reward model (faithful to Ziegler et al. 2019,
sec. 2.1). With `method: full` the policy is a copy of the weights, and a frozen copy serves all others.

Names carry shapes: B episodes, N answer tokens of a batch end to end.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solon.models import ModelSource
from solon.training.adapters import add_adapter, load_adapter, train_only
from solon.training.attention import load_trunk
from solon.training.encoding import Encoded
from solon.training.reward_model import RewardModel, load_reward_model
from solon.training.stems import Stems, depth_below
from solon.training.views import View
from solon.training_settings import Reinforce

POLICY, CRITIC, REWARD = "policy", "critic", "reward"


@dataclass(frozen=True)
class Reading:
    """What the policy says of answer tokens, float32, [N] each: log-probability, value, entropy (nats)."""

    logp_N: Tensor
    value_N: Tensor
    entropy_N: Tensor


class Policy(nn.Module):
    """Actor and critic. The value of a token's state is read before the token is chosen."""

    def __init__(self, actor: View, reference: View, temperature: float, critic: View | None = None) -> None:
        """Without `critic` the value head stands on the actor's states and starts at zero."""
        super().__init__()
        self.actor = actor
        self.reference = reference
        self.critic = critic
        # Old, new and reference log-probabilities are all of the distribution that was sampled from.
        self._temperature = temperature
        self.trunk = actor.model
        self.critic_trunk = critic.model if critic and critic.model is not actor.model else None
        self.value_head = nn.Linear(actor.model.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_head.to(actor.device)

    def forward(self, episodes: Sequence[Encoded], critic_only: bool = False) -> Reading:
        """Read all answer tokens of the episodes, in order; with `critic_only` only values have gradients."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not critic_only):
            spoken = self.actor.speak(episodes, self._temperature)
        hidden_ND = spoken.hidden_ND if self.critic is None else self.critic.states(episodes)
        return Reading(spoken.logp_N, self.value_head(hidden_ND.float()).squeeze(-1), spoken.entropy_N)

    @torch.no_grad()
    def reference_logprobs(self, episodes: Sequence[Encoded]) -> Tensor:
        """Log-probabilities [N] under the model before reinforcement."""
        return self.reference.speak(episodes, self._temperature).logp_N

    @contextmanager
    def holding(self, episodes: Sequence[Encoded]) -> Iterator[None]:
        """Meanwhile what all views have in common of these episodes is read once (`training.stems`)."""
        stems = self.actor.stems
        with stems.held([e.ids for e in episodes]) if stems else nullcontext():
            yield

    @property
    def dtype(self) -> torch.dtype:
        """The type that the trunk computes in."""
        found: torch.dtype = self.trunk.dtype
        return found


@dataclass(frozen=True)
class Actors:
    """All models of a PPO run. `whole` is what is saved in the end: the policy, with adapters or without."""

    policy: Policy
    reward: RewardModel
    whole: Any


def open_actors(
    source: ModelSource,
    reward: Path,
    tokenizer: Any,
    settings: Reinforce,
    device: str,
    dtype: torch.dtype,
    seed: int,
) -> Actors:
    """Policy, reference, critic and reward model on the SL model's weights.

    Errors are those of `load_model` and `load_reward_model`.
    """
    trunk: Any = load_trunk(source, device, dtype)
    if settings.method == "lora":
        trunk = add_adapter(trunk, settings.lora, seed, POLICY)
        actor, whole = View(trunk.get_base_model(), POLICY), trunk
    else:
        whole = load_trunk(source, device, dtype)
        actor = View(whole)
    reward_model = load_reward_model(reward, trunk, tokenizer, REWARD)
    frozen = reward_model.trunk
    critic = None
    if settings.critic == "adapter":
        load_adapter(frozen, reward, CRITIC)
        critic = View(frozen.get_base_model(), CRITIC)
    train_only(frozen, POLICY, CRITIC)
    temperature = settings.sampling.temperature
    reference = View(frozen.get_base_model())
    if settings.method == "lora":
        stems = Stems(actor.model, depth_below(actor.model, POLICY))
        actor, reference = on_stems(actor, stems), on_stems(reference, stems)
        critic = critic and on_stems(critic, stems)
        reward_model.view = on_stems(reward_model.view, stems)
    policy = Policy(actor, reference, temperature, critic)
    if critic is not None:
        start_from(policy.value_head, reward_model)
    return Actors(policy.eval(), reward_model, whole)


def on_stems(view: View, stems: Stems) -> View:
    """The view with the stems, if its own adapter leaves those blocks as they are."""
    return replace(view, stems=stems) if depth_below(view.model, view.adapter) >= stems.depth else view


@torch.no_grad()
def start_from(value_head: nn.Linear, reward: RewardModel) -> None:
    """Let the value head say the reward model's normalised score."""
    mean, std = reward.get_buffer("mean"), reward.get_buffer("std")
    value_head.weight.copy_(reward.head.weight / std)
    value_head.bias.copy_((reward.head.bias - mean) / std)
