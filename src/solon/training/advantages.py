"""From scores to advantages: token rewards, generalised advantage estimation, whitening, adaptive KL.

Names carry shapes: B episodes, T answer tokens, right-padded; `lengths_B` counts the answer tokens of each
episode, at least 1. Every function returns 0 in padded positions and ignores what stood there. Nothing here
carries a gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solon.errors import RunError, UsageError
from solon.training.batching import mask_of
from solon.training.losses import masked_moments

MAX_KL_ERROR = 0.2
MULTIPLIER_GAIN = 2.0
VARIANCE_FLOOR = 1e-8


@torch.no_grad()
def token_rewards(
    logp_BT: Tensor, logp_ref_BT: Tensor, score_B: Tensor, lengths_B: Tensor, beta: float
) -> Tensor:
    """Reward of each answer token, [B, T]: -beta (logp - logp_ref), and the score added at the last token.

    Summed over an episode it is r(x, y) - beta log(pi / rho), Ziegler et al. 2019 (arXiv 1909.08593), eq. 2.
    Log-probabilities are those of the sampled tokens, in nats; beta is in score units per nat.

    Raises:
        ValueError: a length is below 1 or above T.
    """
    mask_BT = _episodes(lengths_B, logp_BT.shape[1])
    reward_BT = _valid(-beta * (logp_BT - logp_ref_BT), mask_BT)
    last_B1 = (lengths_B - 1).unsqueeze(1)
    return reward_BT.scatter_add(1, last_B1, score_B.to(reward_BT.dtype).unsqueeze(1))


@torch.no_grad()
def gae(
    reward_BT: Tensor, value_BT: Tensor, lengths_B: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each token, ([B, T], [B, T]), in reward units.

    A_t = sum over l of (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t; return = A + V.
    Schulman et al. 2016 (arXiv 1506.02438), eq. 16. The episode ends after its last token: V is 0 there,
    also for an answer that was cut off, whose penalty is in its score. value_BT[:, t] is the critic's
    reading before token t is chosen.

    Raises:
        ValueError: a length is below 1 or above T.
    """
    mask_BT = _episodes(lengths_B, reward_BT.shape[1])
    value_BT = _valid(value_BT, mask_BT)
    next_BT = torch.nn.functional.pad(value_BT[:, 1:], (0, 1))
    delta_BT = _valid(reward_BT, mask_BT) + gamma * next_BT - value_BT
    advantage_BT = _discounted_sums(delta_BT, gamma * lam)
    return advantage_BT, advantage_BT + value_BT


@torch.no_grad()
def whiten(
    x_BT: Tensor,
    mask_BT: Tensor,
    shift_mean: bool = True,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """x scaled to standard deviation 1 over valid tokens, and shifted to mean 0 unless `shift_mean` is false.

    `reduce` as in `losses.masked_moments`: all ranks share one mean and one (population) variance.
    Rewards are whitened without shifting: their sign says whether an episode is worth ending.

    Raises:
        ValueError: no token is valid on any rank.
    """
    mean, variance = masked_moments(x_BT, mask_BT, reduce)
    centred_BT = _valid(x_BT.float() - mean, mask_BT.bool())
    white_BT = centred_BT * torch.rsqrt(variance + VARIANCE_FLOOR)
    return white_BT if shift_mean else _valid(white_BT + mean, mask_BT.bool())


@dataclass(frozen=True)
class AdaptiveKL:
    """A controller that steers the KL from the reference to `target`, in nats an episode.

    `horizon` is the number of episodes over which a lasting error of 100 % would double or remove beta,
    were it not clipped; the paper's K_beta is episodes / horizon.
    """

    target: float
    horizon: int

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.horizon > 0):
            raise UsageError(
                f"adaptive KL: target {self.target} and horizon {self.horizon} must both be above 0. "
                "Raise them, or use a fixed beta."
            )

    def next(self, beta: float, kl: float, episodes: int) -> float:
        """The beta after `episodes` episodes whose mean KL was `kl` nats.

        beta (1 + K e), e = clip((kl - target) / target, -0.2, 0.2), Ziegler et al. 2019 (arXiv 1909.08593),
        sec. 2.2.

        Raises:
            RunError: kl is not finite.
            UsageError: the horizon is so short that beta could turn negative.
        """
        if not math.isfinite(kl):
            raise RunError(f"adaptive KL: the measured KL is {kl}. Lower the learning rate and run again.")
        least = MAX_KL_ERROR * episodes
        if least >= self.horizon:
            raise UsageError(
                f"adaptive KL: horizon {self.horizon} is too short for {episodes} episodes, beta could "
                f"reach 0. Set a horizon above {least:g}, better {10 * episodes}."
            )
        error = min(max(kl / self.target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
        return beta * (1 + error * episodes / self.horizon)


def next_multiplier(multiplier: float, excess: float) -> float:
    """The price of what should be rare, after a step in which its share was `excess` above what is wanted.

    max(0, lambda + K excess), the dual ascent of constrained reinforcement (Ray, Achiam & Amodei 2019;
    Stooke et al. 2020). K is large because runs are short: a share that is 0.2 too high for
    ten steps costs 4, several deviations of the normalised score.
    """
    return max(0.0, multiplier + MULTIPLIER_GAIN * excess)


def _discounted_sums(delta_BT: Tensor, decay: float) -> Tensor:
    """out_t = delta_t + decay out_{t+1}. Padding holds 0, so each row starts at its own last token."""
    out_BT = torch.zeros_like(delta_BT)
    running_B = torch.zeros_like(delta_BT[:, 0])
    for t in reversed(range(delta_BT.shape[1])):
        running_B = delta_BT[:, t] + decay * running_B
        out_BT[:, t] = running_B
    return out_BT


def _episodes(lengths_B: Tensor, T: int) -> Tensor:
    if (lengths_B < 1).any():
        raise ValueError("an episode has no answer token: drop it before computing rewards")
    return mask_of(lengths_B, T)


def _valid(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT, x_BT, torch.zeros_like(x_BT))
