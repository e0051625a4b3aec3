"""Proximal policy optimisation on episodes of one answer each (Schulman et al. 2017; Ziegler et al. 2019).

A step has three parts: sample a batch of answers (elsewhere), `evaluate` them under the old policy, the
reference and the reward model, and `improve` the policy for some epochs on them. Tensor names carry
their shape: B episodes, T answer positions (right-padded, explicit lengths), N answer tokens end to end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solon.recipe import Reinforce
from solon.training.advantages import gae, token_rewards, whiten
from solon.training.batching import mask_of
from solon.training.encoding import Encoded
from solon.training.losses import explained_variance, masked_mean, policy_loss, value_loss
from solon.training.policy import Policy, Reading

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rollout:
    """A batch of episodes with all that is needed to learn from it. Nothing here has a gradient."""

    episodes: tuple[Encoded, ...]
    finished_B: Tensor
    score_B: Tensor
    logp_BT: Tensor
    reference_BT: Tensor
    value_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor

    @property
    def lengths_B(self) -> Tensor:
        return answer_lengths(self.episodes)

    @property
    def kl_B(self) -> Tensor:
        """Sampled KL to the reference an episode, in nats: the sum of log-ratios over its tokens."""
        return ((self.logp_BT - self.reference_BT) * self.mask_BT).sum(1)


def answer_lengths(episodes: Sequence[Encoded]) -> Tensor:
    return torch.tensor([len(e.answer) for e in episodes])


def pad_tokens(flat_N: Tensor, lengths_B: Tensor) -> Tensor:
    """Lay values of tokens end to end [N] out as rows [B, T], zeros after each length."""
    rows = torch.split(flat_N, lengths_B.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


@torch.no_grad()
def evaluate(
    policy: Policy,
    episodes: Sequence[Encoded],
    finished: Sequence[bool],
    scores: Tensor,
    settings: Reinforce,
    plan: Sequence[Sequence[int]],
) -> Rollout:
    """Read the episodes under the old policy and the reference; apply the missing-end score.

    Args:
        scores: the reward model's normalised scores, [B].
        plan: the first epoch's minibatches. Reading in the same batches makes the first ratio exactly 1
            also in bfloat16, where a row's result depends a little on its neighbours' lengths.
    """
    chunks = [[episodes[i] for i in batch] for batch in plan]
    old = [policy(chunk) for chunk in chunks]
    reference = [policy.reference_logprobs(chunk) for chunk in chunks]
    planned_B = torch.tensor([i for batch in plan for i in batch])
    back_B = planned_B.argsort()
    lengths_B = answer_lengths(episodes)
    finished_B = torch.tensor(list(finished))
    if settings.missing_end_score is not None:
        scores = torch.where(finished_B, scores, torch.full_like(scores, settings.missing_end_score))

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        return pad_tokens(torch.cat([t.cpu() for t in tensors]), lengths_B[planned_B])[back_B]

    return Rollout(
        tuple(episodes),
        finished_B,
        scores,
        rows([reading.logp_N for reading in old]),
        rows(reference),
        rows([reading.value_N for reading in old]),
        rows([reading.entropy_N for reading in old]),
        mask_of(lengths_B, int(lengths_B.max())),
    )


def improve(
    policy: Any,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    settings: Reinforce,
    beta: float,
    plan: Sequence[Sequence[Sequence[int]]],
    backward: Callable[[Tensor], None] = torch.autograd.backward,
    reduce: Reduce | None = None,
) -> dict[str, float]:
    """Learn from one rollout, by a plan of minibatches an epoch; the step's metrics.

    `backward` and `reduce` are where several processes join (gradients averaged, sums added up).
    """
    reward_BT = token_rewards(rollout.logp_BT, rollout.reference_BT, rollout.score_B, rollout.lengths_B, beta)
    advantage_BT, return_BT = gae(
        reward_BT, rollout.value_BT, rollout.lengths_B, settings.gamma, settings.lam
    )
    whitened_BT = whiten(advantage_BT, rollout.mask_BT, reduce=reduce)
    losses: list[dict[str, float]] = []
    for epoch in plan:
        for batch in epoch:
            loss, metrics = minibatch_loss(policy, rollout, whitened_BT, return_BT, batch, settings)
            backward(loss)
            metrics["grad_norm"] = _clip_gradients(policy, settings.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(metrics)
    explained = float(explained_variance(rollout.value_BT, return_BT, rollout.mask_BT))
    return {
        **_rollout_metrics(rollout, beta),
        **_means(losses),
        "explained_variance": explained,
        "beta": beta,
    }


def minibatch_loss(
    policy: Any,
    rollout: Rollout,
    advantage_BT: Tensor,
    return_BT: Tensor,
    batch: Sequence[int],
    settings: Reinforce,
) -> tuple[Tensor, dict[str, float]]:
    """Clipped surrogate plus weighted, clipped value loss of some episodes (Schulman et al. 2017, eq. 9)."""
    episodes = [rollout.episodes[i] for i in batch]
    lengths_B = answer_lengths(episodes)
    new: Reading = policy(episodes)
    device = new.logp_N.device
    longest = int(lengths_B.max())
    index = torch.tensor(list(batch))

    def old(x_BT: Tensor) -> Tensor:
        return x_BT[index, :longest].to(device)

    mask_BT = mask_of(lengths_B, longest).to(device)
    logp_BT, value_BT = pad_tokens(new.logp_N, lengths_B), pad_tokens(new.value_N, lengths_B)
    pg_loss, clip_share = policy_loss(
        logp_BT, old(rollout.logp_BT), old(advantage_BT), mask_BT, settings.clip
    )
    v_loss = value_loss(value_BT, old(rollout.value_BT), old(return_BT), mask_BT, settings.value_clip)
    ratio_BT = torch.exp(logp_BT.detach() - old(rollout.logp_BT))
    metrics = {
        "policy_loss": float(pg_loss.detach()),
        "value_loss": float(v_loss.detach()),
        "clip_share": float(clip_share),
        "ratio_error": float(((ratio_BT - 1.0).abs() * mask_BT).max()),
    }
    return pg_loss + settings.value_coefficient * v_loss, metrics


def _clip_gradients(policy: Any, max_norm: float) -> float:
    moved = [p for p in policy.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(moved, max_norm)
    return float(norm) if math.isfinite(float(norm)) else math.nan


def _rollout_metrics(rollout: Rollout, beta: float) -> dict[str, float]:
    kl_B = rollout.kl_B
    return {
        "reward": float((rollout.score_B - beta * kl_B).mean()),
        "score": float(rollout.score_B.mean()),
        "kl": float(kl_B.mean()),
        "entropy": float(masked_mean(rollout.entropy_BT, rollout.mask_BT)),
        "length": float(rollout.lengths_B.float().mean()),
        "finished_share": float(rollout.finished_B.float().mean()),
    }


def _means(losses: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the minibatches; of the ratio's error the first, which must be near 0."""
    means = {name: sum(m[name] for m in losses) / len(losses) for name in losses[0]}
    return {**means, "ratio_error": losses[0]["ratio_error"]}
