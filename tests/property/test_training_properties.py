"""What must hold of the training mathematics for any input."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from solon.training.advantages import gae, token_rewards, whiten
from solon.training.batching import budget_batches, mask_of, minibatches
from solon.training.checkpoints import load, optimiser_tensors, restore_optimiser, save
from solon.training.losses import approximate_kl, policy_loss, soft_bradley_terry

seeds = st.integers(0, 2**31 - 1)
lengths_of_batches = st.lists(st.integers(1, 7), min_size=1, max_size=5)
unit = st.floats(0.0, 1.0)
GARBAGE = 1e9


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_gae(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Equation 16 as the double sum it is, for one episode without padding."""
    count = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(count)]
    advantages = [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, count)) for t in range(count)
    ]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@given(lengths_of_batches, unit, unit, seeds)
def test_gae_equals_the_double_sum(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    width = max(lengths) + 1
    reward, value = noise(seed, len(lengths), width), noise(seed + 1, len(lengths), width)
    advantage, returns = gae(reward, value, torch.tensor(lengths), gamma, lam)
    for row, count in enumerate(lengths):
        expected = naive_gae(reward[row, :count].tolist(), value[row, :count].tolist(), gamma, lam)
        assert advantage[row, :count].tolist() == pytest.approx(expected[0], abs=1e-9)
        assert returns[row, :count].tolist() == pytest.approx(expected[1], abs=1e-9)
        assert not advantage[row, count:].any()
        assert not returns[row, count:].any()


@given(lengths_of_batches, st.floats(0.0, 2.0), seeds)
def test_token_rewards_sum_to_score_minus_beta_kl(lengths: list[int], beta: float, seed: int) -> None:
    count, width = len(lengths), max(lengths)
    logp, reference, score = noise(seed, count, width), noise(seed + 1, count, width), noise(seed + 2, count)
    rewards = token_rewards(logp, reference, score, torch.tensor(lengths), beta)
    for row, length in enumerate(lengths):
        kl = (logp - reference)[row, :length].sum().item()
        assert rewards[row].sum().item() == pytest.approx(score[row].item() - beta * kl, abs=1e-9)


@given(st.lists(st.tuples(st.floats(-30, 30), unit), min_size=1, max_size=8))
def test_soft_bradley_terry_gradient_is_sigmoid_minus_p(pairs: list[tuple[float, float]]) -> None:
    delta = torch.tensor([d for d, _ in pairs], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([p for _, p in pairs], dtype=torch.float64)
    torch.autograd.backward(soft_bradley_terry(delta, p))
    assert delta.grad is not None
    torch.testing.assert_close(delta.grad, (torch.sigmoid(delta.detach()) - p) / len(pairs))


@given(seeds)
def test_the_first_policy_gradient_is_that_of_reinforce(seed: int) -> None:
    """At ratio 1 nothing is clipped and the gradient is minus the mean advantage-weighted score."""
    logp = noise(seed, 2, 3).requires_grad_()
    advantage, mask = noise(seed + 1, 2, 3), mask_of(torch.tensor([3, 1]), 3)
    loss, share = policy_loss(logp, logp.detach().clone(), advantage, mask, 0.2)
    torch.autograd.backward(loss)
    assert share.item() == 0.0
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, torch.where(mask, -advantage / 4, 0.0))


@given(seeds)
def test_k3_is_never_negative(seed: int) -> None:
    assert (approximate_kl(noise(seed, 3, 4), noise(seed + 1, 3, 4)) >= 0).all()


@given(lengths_of_batches.filter(lambda lengths: sum(lengths) > 2), seeds, st.floats(-10, 10))
def test_whitened_tokens_have_mean_0_and_deviation_1(lengths: list[int], seed: int, shift: float) -> None:
    mask = mask_of(torch.tensor(lengths), max(lengths) + 1)
    x = noise(seed, *mask.shape) + shift
    white = whiten(torch.where(mask, x, GARBAGE), mask)
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-3)
    assert white[mask].std(unbiased=False).item() == pytest.approx(1.0, abs=1e-3)
    assert not white[~mask].any()
    assert torch.equal(white, whiten(torch.where(mask, x, -GARBAGE), mask))


@settings(deadline=None)
@given(lengths_of_batches, lengths_of_batches, seeds, st.booleans())
def test_two_ranks_whiten_as_one(here: list[int], there: list[int], seed: int, shift_mean: bool) -> None:
    mask = mask_of(torch.tensor(here + there), 8)
    x = noise(seed, *mask.shape).float()
    whole = whiten(x, mask, shift_mean)
    white = on_two_ranks(x, mask, len(here), shift_mean)
    torch.testing.assert_close(white, whole, rtol=1e-3, atol=1e-3)


def on_two_ranks(x: Tensor, mask: Tensor, cut: int, shift_mean: bool) -> Tensor:
    """whiten on rows [:cut] and rows [cut:] in two threads that meet in every reduce, as two ranks do."""
    meet, sent = Barrier(2, timeout=10), [torch.empty(0), torch.empty(0)]

    def rank(index: int, rows: slice) -> Tensor:
        def reduce(sums: Tensor) -> Tensor:
            sent[index] = sums
            meet.wait()
            total = sent[0] + sent[1]
            meet.wait()
            return total

        return whiten(x[rows], mask[rows], shift_mean, reduce)

    with ThreadPoolExecutor(2) as ranks:
        parts = ranks.map(rank, (0, 1), (slice(None, cut), slice(cut, None)))
        return torch.cat(list(parts))


@given(st.integers(0, 60), st.integers(1, 12), seeds)
def test_minibatches_cover_each_index_once(n: int, size: int, seed: int) -> None:
    batches = minibatches(n, size, torch.Generator().manual_seed(seed))
    assert sorted(index for batch in batches for index in batch) == list(range(n))
    assert all(len(batch) == size for batch in batches[:-1])


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 60))
def test_budget_batches_cover_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = budget_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def tiny(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05, eps=1e-5)


def train(model: nn.Module, optimizer: torch.optim.AdamW, generator: torch.Generator, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(4, 3, generator=generator)
        torch.autograd.backward((model(x) - x.sum(1, keepdim=True)).square().mean())
        optimizer.step()
        optimizer.zero_grad()


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(0, 3), st.integers(1, 3))
def test_a_resumed_training_equals_an_uninterrupted_one_bit_by_bit(
    seed: int, before: int, after: int
) -> None:
    model, optimizer = tiny(seed)
    names = [name for name, _ in model.named_parameters()]
    generator = torch.Generator().manual_seed(seed)
    train(model, optimizer, generator, before)
    with tempfile.TemporaryDirectory() as folder:
        state = {**model.state_dict(), **optimiser_tensors(optimizer, names), "rng": generator.get_state()}
        save(Path(folder), state, {"step": before})
        train(model, optimizer, generator, after)
        loaded = load(Path(folder))
    assert loaded is not None
    tensors, meta = loaded
    assert meta == {"step": before}
    resumed, fresh = tiny(seed + 1)
    resumed.load_state_dict({name: tensors[name] for name in names})
    restore_optimiser(fresh, tensors, names)
    again = torch.Generator()
    again.set_state(tensors["rng"])
    train(resumed, fresh, again, after)
    for name, parameter in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], parameter)
