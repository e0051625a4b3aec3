"""Packed weights: the same numbers (in bfloat16 bit for bit), and the model as before afterwards."""

import pytest
import torch
from torch import Tensor, nn

from solon.engines.packed import FEW, WORTH, packed


def _layers(model: nn.Module) -> int:
    return sum("forward" in vars(module) for module in model.modules())


class Wide(nn.Module):
    device, base_model = torch.device("cpu"), None
    dtype = torch.bfloat16

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


@pytest.mark.parametrize("rows", [FEW - 1, FEW, 24, 200])
def test_float32_is_equal_but_for_rounding(wide: Wide, rows: int) -> None:
    single = wide.float()
    single.dtype = torch.float32
    x = torch.randn(2, rows, 96)
    with torch.inference_mode():
        expected, one = single(x), single(x[:, :1])
        with packed(single, WORTH):
            assert _layers(single) == 2
            torch.testing.assert_close(single(x), expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(single(x[:, :1]), one), "few rows are computed as without packing"


def test_short_answers_are_not_worth_it(wide: Wide) -> None:
    with packed(wide, WORTH - 1):
        assert _layers(wide) == 0
