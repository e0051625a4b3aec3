"""Losses against numbers worked out by hand."""

import math

import pytest
import torch

from solon.training.losses import (
    approximate_kl,
    entropy,
    explained_variance,
    masked_mean,
    policy_loss,
    soft_bradley_terry,
    token_logprobs,
    value_loss,
)


def one(x: float) -> torch.Tensor:
    return torch.tensor([[x]])


def policy_at(ratio: float, advantage: float) -> tuple[float, float, float]:
    """Loss, clip share and gradient by logp_new of a single token, clip 0.2."""
    new = one(math.log(ratio)).requires_grad_()
    loss, share = policy_loss(new, one(0.0), one(advantage), one(1.0), 0.2)
    torch.autograd.backward(loss)
    assert new.grad is not None
    return loss.item(), share.item(), new.grad.item()


def test_masked_mean_counts_tokens_not_rows() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.inf, math.nan]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    # (1 + 2 + 3 + 10) / 4 = 4; a mean of row means would be (2 + 10) / 2 = 6.
    assert masked_mean(x, mask).item() == 4.0
    assert masked_mean(x, mask.float()).item() == 4.0


def test_masked_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no answer token"):
        masked_mean(torch.ones(2, 2), torch.zeros(2, 2))


def test_soft_bradley_terry_by_hand() -> None:
    # sigmoid(1) = 0.7310586; -ln = 0.3132617; sigmoid(-1) = 0.2689414; -ln = 1.3132617.
    # 0.7 * 0.3132617 + 0.3 * 1.3132617 = 0.6132617.
    loss = soft_bradley_terry(torch.tensor([1.0]), torch.tensor([0.7]))
    assert loss.item() == pytest.approx(0.6132617, abs=1e-6)


def test_soft_bradley_terry_gradient_is_sigmoid_minus_p() -> None:
    delta = torch.tensor([1.0, -2.0], requires_grad=True)
    torch.autograd.backward(soft_bradley_terry(delta, torch.tensor([0.7, 0.5])))
    # (0.7310586 - 0.7) / 2 and (0.1192029 - 0.5) / 2.
    assert delta.grad is not None
    assert delta.grad.tolist() == pytest.approx([0.0155293, -0.1903985], abs=1e-6)


def test_soft_bradley_terry_is_stable_far_out() -> None:
    # -ln sigmoid(-1000) = 1000 although sigmoid(-1000) is 0 in float32.
    assert soft_bradley_terry(torch.tensor([-1000.0]), torch.tensor([1.0])).item() == 1000.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "share", "gradient"),
    [
        (1.5, 2.0, -2.4, 1.0, 0.0),  # min(3.0, 1.2 * 2) = 2.4: no reward for going further up
        (0.5, 2.0, -1.0, 0.0, -1.0),  # min(1.0, 0.8 * 2) = 1.0: free to come back
        (1.5, -2.0, 3.0, 0.0, 3.0),  # min(-3.0, -2.4) = -3.0: free to come back
        (0.5, -2.0, 1.6, 1.0, 0.0),  # min(-1.0, -1.6) = -1.6: no reward for going further down
        (1.1, 2.0, -2.2, 0.0, -2.2),  # inside the clip
    ],
)
def test_policy_loss_on_both_sides_of_both_signs(
    ratio: float, advantage: float, loss: float, share: float, gradient: float
) -> None:
    assert policy_at(ratio, advantage) == pytest.approx((loss, share, gradient), abs=1e-5)


def test_policy_loss_is_a_mean_over_tokens_and_ignores_padding() -> None:
    new = torch.log(torch.tensor([[1.5, 0.5], [1.1, 1.0]])).requires_grad_()
    advantage = torch.tensor([[2.0, 2.0], [2.0, math.nan]])
    old = torch.tensor([[0.0, 0.0], [0.0, -math.inf]])
    mask = torch.tensor([[1, 1], [1, 0]])
    loss, share = policy_loss(new, old, advantage, mask, 0.2)
    torch.autograd.backward(loss)
    # -(2.4 + 1.0 + 2.2) / 3; one of three tokens is clipped.
    assert loss.item() == pytest.approx(-5.6 / 3, abs=1e-5)
    assert share.item() == pytest.approx(1 / 3)
    assert new.grad is not None
    assert new.grad.flatten().tolist() == pytest.approx([0.0, -1 / 3, -2.2 / 3, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("new", "loss", "gradient"),
    [
        # Old value 0, return 1, clip 0.2: the clipped value is 0.2, its half square 0.8^2 / 2 = 0.32.
        (0.5, 0.32, 0.0),  # free (0.5)^2 / 2 = 0.125 is smaller: held back, no gradient
        (0.1, 0.405, -0.9),  # inside the clip: 0.9^2 / 2
        (-0.5, 1.125, -1.5),  # away from the return: free 1.5^2 / 2 beats clipped 1.2^2 / 2 = 0.72
    ],
)
def test_value_loss_is_the_worse_of_free_and_clipped(new: float, loss: float, gradient: float) -> None:
    value = one(new).requires_grad_()
    found = value_loss(value, one(0.0), one(1.0), one(1.0), 0.2)
    torch.autograd.backward(found)
    assert value.grad is not None
    assert (found.item(), value.grad.item()) == pytest.approx((loss, gradient), abs=1e-6)


def test_value_loss_ignores_padding_in_the_gradient_too() -> None:
    value = torch.tensor([[0.1, 5.0]], requires_grad=True)
    old, returns = torch.tensor([[0.0, math.inf]]), torch.tensor([[1.0, math.nan]])
    loss = value_loss(value, old, returns, torch.tensor([[1, 0]]), 0.2)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0.405, abs=1e-6)
    assert value.grad is not None
    assert value.grad.flatten().tolist() == pytest.approx([-0.9, 0.0], abs=1e-6)


def test_the_kl_estimate_by_hand() -> None:
    # r = q / p = 0.25 / 0.5 = 0.5: 0.5 - 1 + ln 2 = 0.1931472. r = 2: 2 - 1 - ln 2 = 0.3068528.
    p = torch.log(torch.tensor([[0.5, 0.25]]))
    q = torch.log(torch.tensor([[0.25, 0.5]]))
    assert approximate_kl(p, q).flatten().tolist() == pytest.approx([0.1931472, 0.3068528], abs=1e-6)


def test_the_kl_estimate_has_the_divergence_as_expectation() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    # 0.5 ln 2.5 + 0.3 ln 1.5 + 0.2 ln(1/3) = 0.4581454 + 0.1216395 - 0.2197225 = 0.3600624.
    assert (p * approximate_kl(p.log(), q.log())).sum().item() == pytest.approx(0.3600624, abs=1e-6)


def test_entropy_by_hand_and_in_slices() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -1e4, -1e4]])
    # ln 4 = 1.3862944; p = (3/4, 1/4): 0.75 * 0.2876821 + 0.25 * 1.3862944 = 0.5623351.
    assert entropy(logits).tolist() == pytest.approx([1.3862944, 0.5623351], abs=1e-6)
    assert torch.equal(entropy(logits), torch.cat([entropy(logits[:1]), entropy(logits[1:])]))


def test_entropy_gradient_is_finite_where_a_probability_is_zero() -> None:
    logits = torch.tensor([[0.0, -1e4]], requires_grad=True)
    torch.autograd.backward(entropy(logits).sum())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_token_logprobs_divide_by_the_temperature() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
    ids = torch.tensor([0, 1])
    # Temperature 1: ln(3/4) = -0.2876821. Temperature 0.5 squares the odds to 9: ln(9/10) = -0.1053605.
    assert token_logprobs(logits, ids, 1.0).tolist() == pytest.approx([-0.2876821, -0.6931472], abs=1e-6)
    assert token_logprobs(logits, ids, 0.5).tolist() == pytest.approx([-0.1053605, -0.6931472], abs=1e-6)


def test_token_logprobs_of_bfloat16_logits_are_computed_in_float32() -> None:
    logits = torch.zeros(1, 3, dtype=torch.bfloat16)
    logp = token_logprobs(logits, torch.tensor([2]), 1.0)
    assert logp.dtype == torch.float32
    # -ln 3; bfloat16 itself would give -1.1015625.
    assert logp.item() == pytest.approx(-1.0986123, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_token_logprobs_refuse_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(1, 2), torch.tensor([0]), temperature)


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    value = torch.tensor([[1.0, 2.0], [2.0, -7.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    # Errors 0, 0, 1: variance 1/3 - 1/9 = 2/9. Returns 1, 2, 3: variance 2/3. 1 - (2/9) / (2/3) = 2/3.
    assert explained_variance(value, returns, mask).item() == pytest.approx(2 / 3)
    assert explained_variance(returns + 5, returns, mask).item() == pytest.approx(1.0)


def test_explained_variance_is_zero_where_returns_do_not_vary() -> None:
    assert explained_variance(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2)).item() == 0.0
