"""Rewards, advantages, whitening and the KL controller against numbers worked out by hand."""

import math

import pytest
import torch

from solon.errors import RunError, UsageError
from solon.training.advantages import AdaptiveKL, gae, next_multiplier, token_rewards, whiten

LENGTHS = torch.tensor([3, 2])
PADDED = math.nan


def test_token_rewards_by_hand() -> None:
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, PADDED]])
    reference = torch.tensor([[-2.0, -2.0, -1.0], [-3.0, -1.5, PADDED]])
    rewards = token_rewards(logp, reference, torch.tensor([10.0, -1.0]), LENGTHS, 0.1)
    # Row 0: -0.1 * (1, 0, -2), 10 at token 2. Row 1: -0.1 * (2, 0.5), -1 at token 1, nothing behind it.
    assert rewards[0].tolist() == pytest.approx([-0.1, 0.0, 10.2])
    assert rewards[1].tolist() == pytest.approx([-0.2, -1.05, 0.0])


@pytest.mark.parametrize("lengths", [[0, 2], [4, 2]])
def test_impossible_lengths_are_an_error(lengths: list[int]) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"no answer token|do not fit"):
        token_rewards(x, x, torch.zeros(2), torch.tensor(lengths), 0.1)
    with pytest.raises(ValueError, match=r"no answer token|do not fit"):
        gae(x, x, torch.tensor(lengths), 1.0, 0.95)


def test_gae_by_hand_with_two_lengths() -> None:
    reward = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, PADDED]])
    value = torch.tensor([[0.5, 0.6, 0.8], [0.2, 0.4, PADDED]])
    advantage, returns = gae(reward, value, LENGTHS, gamma=0.9, lam=0.5)
    # Row 0: delta_2 = 1 - 0.8 = 0.2; delta_1 = 0.9 * 0.8 - 0.6 = 0.12; delta_0 = 0.9 * 0.6 - 0.5 = 0.04.
    #        A_2 = 0.2; A_1 = 0.12 + 0.45 * 0.2 = 0.21; A_0 = 0.04 + 0.45 * 0.21 = 0.1345.
    # Row 1: delta_1 = 1 - 0.4 = 0.6; delta_0 = 0.9 * 0.4 - 0.2 = 0.16; A_0 = 0.16 + 0.45 * 0.6 = 0.43.
    assert advantage[0].tolist() == pytest.approx([0.1345, 0.21, 0.2])
    assert advantage[1].tolist() == pytest.approx([0.43, 0.6, 0.0])
    assert returns[0].tolist() == pytest.approx([0.6345, 0.81, 1.0])
    assert returns[1].tolist() == pytest.approx([0.63, 1.0, 0.0])


def test_gae_with_lambda_one_gives_the_reward_to_come() -> None:
    reward = torch.tensor([[1.0, 2.0, 4.0]])
    _, returns = gae(reward, torch.tensor([[9.0, -3.0, 5.0]]), torch.tensor([3]), 1.0, 1.0)
    assert returns[0].tolist() == pytest.approx([7.0, 6.0, 4.0])


def test_advantages_carry_no_gradient() -> None:
    value = torch.ones(1, 3, requires_grad=True)
    advantage, returns = gae(value * 2, value, torch.tensor([3]), 1.0, 0.95)
    assert not advantage.requires_grad
    assert not returns.requires_grad


def test_whiten_by_hand_ignores_padding() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    x = torch.tensor([[1.0, 1.0, 3.0], [3.0, 1e9, PADDED]])
    # Mean 2, population variance 1.
    assert whiten(x, mask).tolist() == [
        pytest.approx([-1.0, -1.0, 1.0]),
        pytest.approx([1.0, 0.0, 0.0]),
    ]


def test_whiten_without_shift_keeps_the_mean() -> None:
    x = torch.tensor([[0.0, 4.0, 1e9]])
    # Mean 2, standard deviation 2: (0 - 2) / 2 + 2 = 1 and (4 - 2) / 2 + 2 = 3.
    white = whiten(x, torch.tensor([[1, 1, 0]]), shift_mean=False)
    assert white[0].tolist() == pytest.approx([1.0, 3.0, 0.0])


def test_whiten_of_equal_values_is_zero() -> None:
    assert whiten(torch.full((2, 2), 0.1), torch.ones(2, 2)).abs().max().item() < 1e-3


def test_whiten_keeps_a_small_variance_on_a_large_mean() -> None:
    # One-pass sums of squares in float32 would lose the variance 0.25 beside 10000^2.
    white = whiten(torch.tensor([[10000.0, 10001.0]]), torch.ones(1, 2))
    assert white[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)


def test_whiten_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no answer token"):
        whiten(torch.ones(1, 2), torch.zeros(1, 2))


def test_a_rank_without_tokens_whitens_with_the_others() -> None:
    # Another rank holds 1 and 3: sum 4, count 2, squares around the mean 2.
    others = iter([torch.tensor([4.0, 2.0]), torch.tensor([2.0])])
    white = whiten(torch.ones(1, 2), torch.zeros(1, 2), reduce=lambda sums: sums + next(others))
    assert white.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("kl", "beta"),
    [
        (6.6, 0.0505),  # error 0.1, 1000 / 10000 episodes: 0.05 * (1 + 0.1 * 0.1)
        (60.0, 0.051),  # error 9, clipped to 0.2: 0.05 * 1.02
        (0.0, 0.049),  # error -1, clipped to -0.2: 0.05 * 0.98
        (6.0, 0.05),  # on target
    ],
)
def test_adaptive_kl_by_hand(kl: float, beta: float) -> None:
    assert AdaptiveKL(target=6.0, horizon=10_000).next(0.05, kl, 1000) == pytest.approx(beta)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_adaptive_kl_stops_at_a_kl_that_is_no_number(kl: float) -> None:
    with pytest.raises(RunError, match="learning rate"):
        AdaptiveKL(6.0, 10_000).next(0.05, kl, 64)


def test_adaptive_kl_never_reaches_zero() -> None:
    with pytest.raises(UsageError, match="horizon 100 is too short"):
        AdaptiveKL(6.0, 100).next(0.05, 0.0, 500)
    with pytest.raises(UsageError, match="above 0"):
        AdaptiveKL(0.0, 100)


def test_a_price_rises_with_what_is_too_much_and_never_turns_into_a_prize() -> None:
    assert next_multiplier(0.5, 0.25) == pytest.approx(1.0)
    assert next_multiplier(0.5, -0.1) == pytest.approx(0.3)
    assert next_multiplier(0.5, -0.9) == 0.0
