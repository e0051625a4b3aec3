"""Packed weights: the same tokens bit for bit, and the model as before afterwards."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from solon.engines.packed import WORTH, packed
from solon.models import load_model, resolve


def _layers(model: nn.Module) -> int:
    return sum("forward" in vars(module) for module in model.modules())


class Wide(nn.Module):
    device, dtype, base_model = torch.device("cpu"), torch.bfloat16, None

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(96, 160), nn.Linear(160, 96, bias=False)
        self.thin = nn.Linear(96, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.thin(self.two(self.one(x)))
        return found


@pytest.fixture
def wide() -> Wide:
    torch.manual_seed(0)
    return Wide().to(torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 5, 16, 200])
def test_results_are_equal_bit_for_bit(wide: Wide, rows: int) -> None:
    x = torch.randn(rows, 96).bfloat16()
    with torch.inference_mode():
        expected = wide(x)
        with packed(wide, WORTH):
            assert _layers(wide) == 2
            assert torch.equal(wide(x), expected)
    assert _layers(wide) == 0


def test_weights_that_were_trained_since_are_packed_anew(wide: Wide) -> None:
    x = torch.randn(3, 96).bfloat16()
    with torch.no_grad():
        with packed(wide, WORTH):
            before = wide(x)
        wide.one.weight.mul_(2)
        with packed(wide, WORTH):
            assert not torch.equal(wide(x), before)


def test_short_answers_and_float32_are_not_worth_it(tiny_model_folder: Path, wide: Wide) -> None:
    with packed(wide, WORTH - 1):
        assert _layers(wide) == 0
    model = load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)
    with packed(model, 100):
        assert _layers(model) == 0
