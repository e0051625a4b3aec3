"""Float32 masters: AdamW as it is in float32, steps that bfloat16 would lose, and state that comes back."""

import pytest
import torch
from torch import nn

from solon.training.optimiser import Optimiser


def _step(optimiser: Optimiser, parameter: nn.Parameter, gradient: float) -> float:
    parameter.grad = torch.full_like(parameter, gradient)
    return optimiser.step(max_norm=1e9)


def test_in_float32_it_is_adamw() -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimiser = Optimiser({"w": ours}, 0.1)
    adam = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    for gradient in (1.0, -0.5, 2.0):
        _step(optimiser, ours, gradient)
        theirs.grad = torch.full_like(theirs, gradient)
        adam.step()
    assert torch.equal(ours, theirs)


def test_small_steps_add_up_that_bfloat16_would_lose() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimiser = Optimiser({"w": parameter}, 1e-4)
    for _ in range(100):
        _step(optimiser, parameter, 1.0)
    assert float(optimiser.masters()["w"]) == pytest.approx(0.99, abs=1e-4)
    assert float(parameter) == pytest.approx(0.99, abs=4e-3)
    assert float(parameter) < 1.0, "each step of 1e-4 alone rounds back to 1"


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimiser = Optimiser({"w": parameter}, 1e-3)
    for part in (256.0, 0.5, 0.5):
        parameter.grad = torch.full_like(parameter, part)
        optimiser.collect()
    assert optimiser.step(max_norm=1e9) == pytest.approx(257.0)


def test_the_norm_is_clipped_and_told_as_it_was() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    optimiser = Optimiser({"w": parameter}, 1e-3)
    parameter.grad = torch.full((4,), 3.0)
    assert optimiser.step(max_norm=1.0) == pytest.approx(6.0)


def test_a_parameter_without_gradient_stays() -> None:
    moved, still = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimiser = Optimiser({"a": moved, "b": still}, 0.1)
    _step(optimiser, moved, 1.0)
    assert float(moved) < 1.0
    assert float(still) == 1.0


def test_steps_without_any_gradient_are_no_steps() -> None:
    """Zeros joined for 50 steps would make AdamW's first true one 0.71 of its size."""
    waiting, moved = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimiser = Optimiser({"w": waiting, "m": moved}, 0.1)
    for _ in range(50):
        moved.grad = torch.ones(1)
        optimiser.step(1e9, join=lambda tensors: None)
    assert float(waiting) == 1.0
    waiting.grad = torch.ones(1)
    optimiser.step(1e9, join=lambda tensors: None)
    assert float(waiting) == pytest.approx(0.9)


def test_a_gradient_of_another_process_alone_moves_it_here_too() -> None:
    parameter = nn.Parameter(torch.ones(1))

    def join(tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor += 1.0  # What the other process has: a gradient of 1

    Optimiser({"w": parameter}, 0.1).step(1e9, join)
    assert float(parameter) == pytest.approx(0.9)


def test_state_comes_back_bit_for_bit() -> None:
    def fresh() -> tuple[nn.Parameter, Optimiser]:
        parameter = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        return parameter, Optimiser({"w": parameter}, 0.01)

    one, first = fresh()
    _step(first, one, 0.3)
    saved = {name: t.clone() for name, t in first.tensors().items()}
    two, second = fresh()
    second.restore(saved)
    for parameter, optimiser in ((one, first), (two, second)):
        _step(optimiser, parameter, -0.7)
    assert torch.equal(one, two)
    assert all(torch.equal(first.tensors()[name], t) for name, t in second.tensors().items())


def test_the_rate_falls_to_zero() -> None:
    optimiser = Optimiser({"w": nn.Parameter(torch.ones(1))}, 0.8)
    assert [optimiser.anneal(step, 4) for step in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
