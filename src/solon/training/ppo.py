"""Proximal policy optimisation on episodes of one answer each (Schulman et al. 2017; Ziegler et al. 2019).

A step has three parts: sample a batch of answers (elsewhere), `rollout.evaluate` them under the old policy,
its critic and the reference, and `improve` the policy for some epochs on them. Tensor names carry their
shape: B episodes, T answer positions (right-padded, explicit lengths), N answer tokens end to end.

With several processes each holds its own episodes; `ranks` adds up, and every figure is that of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solon.errors import RunError
from solon.training.advantages import gae, token_rewards, whiten
from solon.training.batching import mask_of
from solon.training.losses import approximate_kl, explained_variance, policy_loss, value_loss
from solon.training.optimiser import Optimiser
from solon.training.policy import Policy
from solon.training.ranks import Ranks
from solon.training.rollout import Minibatch, Plan, Rollout, answer_lengths, pad_tokens
from solon.training_settings import Reinforce

# How far the first minibatch's ratios may be from 1 before sampling and scoring must be called different.
RATIO_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
_MEANS = ("policy_loss", "value_loss", "clip_share", "ratio", "step_kl")


@dataclass(frozen=True)
class Targets:
    """What the epochs of one step aim at: whitened advantages and returns, [B, T] each, 0 in padding."""

    advantage_BT: Tensor
    return_BT: Tensor


def targets(
    rollout: Rollout, settings: Reinforce, beta: float, ranks: Ranks, sources: Sequence[str] = ()
) -> Targets:
    """Token rewards, advantages whitened over all processes, and returns.

    With `settings.centre_scores` the scores count from the mean of their source's, one of `sources`, or of
    their prompt's.
    """
    score_B = rollout.score_B
    if settings.centre_scores == "kind":
        score_B = centred(score_B, [e.source for e in rollout.episodes], sources, ranks)
    elif settings.centre_scores == "prompt":
        score_B = left_out(score_B, settings.group)
    reward_BT = token_rewards(rollout.logp_BT, rollout.reference_BT, score_B, rollout.lengths_B, beta)
    if settings.whiten_rewards:
        reward_BT = whiten(reward_BT, rollout.mask_BT, shift_mean=False, reduce=ranks.sum)
    advantage_BT, return_BT = gae(
        reward_BT, rollout.value_BT, rollout.lengths_B, settings.gamma, settings.lam
    )
    return Targets(whiten(advantage_BT, rollout.mask_BT, reduce=ranks.sum), return_BT)


def centred(score_B: Tensor, source_B: Sequence[str], sources: Sequence[str], ranks: Ranks) -> Tensor:
    """Scores less the mean of all processes' scores of the same source; a source not named keeps its own.

    A baseline that depends on the prompt alone leaves the policy gradient's expectation as it is (Williams
    1992, sec. 4), up to the share of an episode in its own mean. A critic that learns for a few dozen steps
    does not come to know it: every answer to the prompts that score lower is discouraged, good ones too.
    """
    centred_B = score_B.clone()
    for source in sources:  # The same order in every process
        of_B = torch.tensor([own == source for own in source_B])
        total, count = ranks.sum(torch.stack([score_B[of_B].sum(), of_B.sum().float()])).tolist()
        if count:
            centred_B[of_B] -= total / count
    return centred_B


def left_out(score_B: Tensor, group: int) -> Tensor:
    """Scores less the mean of the other answers' of their group: so many in a row are to one prompt.

    The leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, eq. 8): it does not
    depend on the answer that it is taken from, so the gradient's expectation stays as it is, and how good the
    prompt's answers are in the mean is no longer noise in it.

    Raises:
        ValueError: a group has one answer, or the last one is not whole.
    """
    if group < 2 or len(score_B) % group:
        raise ValueError(f"{len(score_B)} scores are no groups of {group}, two or more each")
    score_PG = score_B.view(-1, group)
    return ((score_PG - score_PG.mean(1, keepdim=True)) * group / (group - 1)).reshape(-1)


def improve(
    policy: Policy,
    optimiser: Optimiser,
    rollout: Rollout,
    aims: Targets,
    settings: Reinforce,
    plan: Plan,
    ranks: Ranks,
    critic_only: bool = False,
) -> dict[str, float]:
    """Learn from one rollout for all epochs of the plan, or until the policy is too far from the old one.

    Every minibatch is one optimisation step. Before the step its mean KL from the old policy is measured
    (k3), and beyond `settings.epoch_kl` the rest of the plan is left out. With `critic_only` the policy
    stays. Returns means over the minibatches; `ratio_error` is the first one's, `updates` the share done.

    Raises:
        RunError: the first ratio is not 1: the policy was read differently when it was sampled from.
    """
    done: list[dict[str, float]] = []
    batches = [batch for epoch in plan for batch in epoch]
    for number, batch in enumerate(batches):
        figures = _gradients(policy, optimiser, rollout, aims, batch, settings, ranks, critic_only)
        if number == 0:
            check_first_ratio(figures["ratio_error"], policy.dtype)
        if settings.epoch_kl is not None and figures["step_kl"] > settings.epoch_kl:
            optimiser.discard()
            done = done or [{**figures, "grad_norm": 0.0}]
            break
        figures["grad_norm"] = optimiser.step(settings.max_grad_norm, ranks.join)
        done.append(figures)
    means = {name: sum(m[name] for m in done) / len(done) for name in (*_MEANS, "grad_norm")}
    return {
        **means,
        "ratio_error": done[0]["ratio_error"],
        "updates": len(done) / len(batches),
        "explained_variance": float(
            explained_variance(rollout.value_BT, aims.return_BT, rollout.mask_BT, ranks.sum)
        ),
    }


def check_first_ratio(error: float, dtype: torch.dtype) -> None:
    """Raises RunError if the first minibatch's ratios are not 1, which every later one builds on."""
    tolerance = RATIO_TOLERANCE[dtype]
    if not error <= tolerance:
        raise RunError(
            f"PPO's first ratio is off 1 by {error:.2g}, more than {tolerance:g} in {dtype}: the policy "
            "reads the same answers differently each time. Turn its dropout off, or set dtype: float32."
        )


def _gradients(
    policy: Policy,
    optimiser: Optimiser,
    rollout: Rollout,
    aims: Targets,
    batch: Minibatch,
    settings: Reinforce,
    ranks: Ranks,
    critic_only: bool,
) -> dict[str, float]:
    """Collect the gradients of one minibatch, micro-batch by micro-batch; its figures over all processes.

    A micro-batch weighs as its tokens among all processes' tokens of the minibatch: the sum is the mean
    over the whole minibatch, however it was cut.
    """
    lengths_B = rollout.lengths_B
    mine = sum(int(lengths_B[part].sum()) for part in batch)
    tokens = float(ranks.sum(torch.tensor([float(mine)]))[0])
    sums, error = torch.zeros(len(_MEANS)), 0.0
    for part in batch:
        loss, figures = micro_loss(policy, rollout, aims, part, settings, critic_only)
        weight = float(lengths_B[part].sum()) / tokens
        torch.autograd.backward(loss * weight)
        optimiser.collect()
        sums += weight * torch.tensor([figures[name] for name in _MEANS])
        error = max(error, figures["ratio_error"])
    means = dict(zip(_MEANS, ranks.sum(sums).tolist(), strict=True))
    return {**means, "ratio_error": ranks.max(error)}


def micro_loss(
    policy: Policy,
    rollout: Rollout,
    aims: Targets,
    part: Sequence[int],
    settings: Reinforce,
    critic_only: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Clipped surrogate plus weighted, clipped value loss of some episodes (Schulman et al. 2017, eq. 9)."""
    episodes = [rollout.episodes[i] for i in part]
    lengths_B = answer_lengths(episodes)
    longest, index = int(lengths_B.max()), torch.tensor(list(part))
    new = policy(episodes, critic_only)
    device = new.logp_N.device

    def old(x_BT: Tensor) -> Tensor:
        return x_BT[index, :longest].to(device)

    mask_BT = mask_of(lengths_B, longest).to(device)
    logp_BT, value_BT = pad_tokens(new.logp_N, lengths_B), pad_tokens(new.value_N, lengths_B)
    pg_loss, clip_share = policy_loss(
        logp_BT, old(rollout.logp_BT), old(aims.advantage_BT), mask_BT, settings.clip
    )
    v_loss = value_loss(value_BT, old(rollout.value_BT), old(aims.return_BT), mask_BT, settings.value_clip)
    ratio_BT = torch.exp(logp_BT.detach() - old(rollout.logp_BT))
    k3_BT = approximate_kl(old(rollout.logp_BT), logp_BT.detach())
    figures = {
        "policy_loss": float(pg_loss.detach()),
        "value_loss": float(v_loss.detach()),
        "clip_share": float(clip_share),
        "ratio": float(ratio_BT[mask_BT].mean()),
        "step_kl": float(k3_BT[mask_BT].mean()),
        "ratio_error": float((ratio_BT[mask_BT] - 1.0).abs().max()),
    }
    value_part = settings.value_coefficient * v_loss
    return (value_part if critic_only else pg_loss + value_part), figures


def describe(rollout: Rollout, beta: float, sources: Sequence[str], ranks: Ranks) -> dict[str, float]:
    """What was sampled, over all processes: score, KL, entropy, length; by source the score and refusals.

    Means are over episodes, the entropy's over tokens; a source of which no episode was drawn is left out.
    """
    kl_B, lengths_B = rollout.kl_B, rollout.lengths_B.float()
    share = {
        "finished_share": [e.finished for e in rollout.episodes],
        "degenerate_share": [e.degenerate for e in rollout.episodes],
    }
    values: dict[str, Tensor] = {
        "reward": rollout.score_B - beta * kl_B,
        "score": rollout.score_B,
        "kl": kl_B,
        "length": lengths_B,
        **{name: torch.tensor(flags).float() for name, flags in share.items()},
    }
    everywhere = torch.ones_like(kl_B)
    sums = {name: (value_B.sum(), everywhere.sum()) for name, value_B in values.items()}
    sums["entropy"] = ((rollout.entropy_BT * rollout.mask_BT).sum(), lengths_B.sum())
    refused_B = torch.tensor([e.refused for e in rollout.episodes]).float()
    by_source = {"score": rollout.score_B, "refused": refused_B}
    for source in sources:
        chosen_B = torch.tensor([e.source == source for e in rollout.episodes]).float()
        for name, value_B in by_source.items():
            sums[f"{name}_{source}"] = ((value_B * chosen_B).sum(), chosen_B.sum())
    return _joined(sums, ranks)


def _joined(sums: Mapping[str, tuple[Tensor, Tensor]], ranks: Ranks) -> dict[str, float]:
    total = ranks.sum(torch.stack([part for pair in sums.values() for part in pair]))
    pairs = zip(sums, total.reshape(-1, 2).tolist(), strict=True)
    return {name: value / count for name, (value, count) in pairs if count > 0}
