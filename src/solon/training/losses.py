"""The losses of reward modelling and PPO, and the figures watched beside them: pure functions of tensors.

Names carry shapes: B episodes, T answer tokens (right-padded), P pairs, N positions, V vocabulary.
`mask_BT` is true on answer tokens and is made from explicit lengths (`batching.mask_of`), never from pad
ids. What stands in padded positions never matters. Log-probabilities, entropies and divergences are in nats.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def masked_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of x over all valid tokens of the batch together, a scalar in the unit of x.

    Every token weighs the same, so a long answer weighs more than a short one.

    Raises:
        ValueError: no token is valid.
    """
    mask_BT = mask_BT.bool()
    if not mask_BT.any():
        raise ValueError("mean over an empty mask: no answer token is valid")
    return _valid(x_BT, mask_BT).sum() / mask_BT.sum()


def soft_bradley_terry(delta_P: Tensor, p_P: Tensor) -> Tensor:
    """Cross-entropy of a reward model against soft preferences, mean over the pairs, in nats.

    mean of -[p log sigmoid(delta) + (1 - p) log sigmoid(-delta)]. delta_P is the score of the first answer
    minus that of the second, p_P in [0, 1] the probability that the first is better. The gradient by each
    delta is (sigmoid(delta) - p) / P. Christiano et al. 2017 (arXiv 1706.03741), sec. 2.2.3, with the labels
    of Bai et al. 2022 (arXiv 2212.08073), sec. 4.1.
    """
    return -(p_P * logsigmoid(delta_P) + (1 - p_P) * logsigmoid(-delta_P)).mean()


def policy_loss(
    logp_new_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of PPO, to be minimised, and the share of tokens that the clip holds back.

    loss = mean of -min(r A, clip(r, 1 - clip, 1 + clip) A) with r = exp(logp_new - logp_old), over valid
    tokens; Schulman et al. 2017 (arXiv 1707.06347), eq. 7. The share, in [0, 1], counts the tokens where
    the clipped term is the smaller one, which therefore get no gradient. Both are scalars.
    """
    ratio_BT = _valid(logp_new_BT - logp_old_BT, mask_BT).exp()
    free_BT = -ratio_BT * advantage_BT
    clipped_BT = -ratio_BT.clamp(1 - clip, 1 + clip) * advantage_BT
    loss = masked_mean(torch.maximum(free_BT, clipped_BT), mask_BT)
    return loss, masked_mean((clipped_BT > free_BT).float(), mask_BT).detach()


def value_loss(
    value_new_BT: Tensor, value_old_BT: Tensor, return_BT: Tensor, mask_BT: Tensor, clip: float
) -> Tensor:
    """Half the squared error of the critic, the worse of free and clipped, mean over valid tokens.

    1/2 mean of max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2), a scalar in reward units
    squared. The squared error is Schulman et al. 2017, eq. 9; its clipping is not in the paper but in the
    published PPO code (Huang et al. 2022, "The 37 implementation details of PPO", no. 9).
    """
    clipped_BT = value_old_BT + (value_new_BT - value_old_BT).clamp(-clip, clip)
    free_BT = _valid(value_new_BT - return_BT, mask_BT)
    worse_BT = torch.maximum(free_BT.square(), _valid(clipped_BT - return_BT, mask_BT).square())
    return 0.5 * masked_mean(worse_BT, mask_BT)


def approximate_kl(logp_BT: Tensor, logp_other_BT: Tensor) -> Tensor:
    """An estimate of KL(p || q) for each token that was sampled from p, [B, T], in nats.

    With log r = log q - log p: k3 = (r - 1) - log r is unbiased, never negative, and varies less than -log r.
    Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html). Padding is not masked here.
    """
    log_ratio_BT = logp_other_BT - logp_BT
    return torch.expm1(log_ratio_BT) - log_ratio_BT


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of softmax(logits) at each position, [N], float32, in nats. Divide by the temperature before.

    Rows do not touch each other, so a caller short of memory may pass slices. Logits must be finite.
    """
    logp_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    return -(logp_NV.exp() * logp_NV).sum(-1)


def token_logprobs(logits_NV: Tensor, ids_N: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature), [N], float32, in nats.

    Use the sampling temperature for the old, the new and the reference policy alike: otherwise the first
    ratio of PPO is not 1. Rows do not touch each other, so a caller short of memory may pass slices.

    Raises:
        ValueError: temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}, must be above 0: greedy text has no log-probabilities"
        )
    logp_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    return logp_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)


def explained_variance(
    value_BT: Tensor,
    return_BT: Tensor,
    mask_BT: Tensor,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """1 - Var(return - value) / Var(return) over valid tokens, a scalar without unit.

    1: the critic knows the returns up to a constant; 0: it is no better than a constant, which also holds
    where the returns do not vary; below 0: it is worse. `reduce` as in `advantages.whiten`.
    """
    _, variance = masked_moments(return_BT, mask_BT, reduce)
    _, unexplained = masked_moments(return_BT - value_BT, mask_BT, reduce)
    return torch.where(variance > 0, 1 - unexplained / variance, torch.zeros_like(variance))


def _valid(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """x with padding set to 0. Not a product: 0 times a padded infinity would be NaN."""
    return torch.where(mask_BT.bool(), x_BT, torch.zeros_like(x_BT))


def masked_moments(
    x_BT: Tensor, mask_BT: Tensor, reduce: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and (population) variance of x over valid tokens, two scalars.

    `reduce` maps a vector to its sum over all ranks, so that all share one mean and one variance; every rank
    must call. It is used twice, for the mean and then for the squares around it, since a difference of two
    large sums would lose the digits of a small variance.

    Raises:
        ValueError: no token is valid on any rank.
    """
    total = reduce or _only_rank
    mask_BT = mask_BT.bool()
    valid_BT = _valid(x_BT.float(), mask_BT)
    both = total(torch.stack([valid_BT.sum(), mask_BT.sum().float()]))
    if both[1] == 0:
        raise ValueError("moments over an empty mask: no answer token is valid on any rank")
    mean = both[0] / both[1]
    squares = _valid(valid_BT - mean, mask_BT).square().sum().reshape(1)
    return mean, total(squares)[0] / both[1]


def _only_rank(sums: Tensor) -> Tensor:
    return sums
