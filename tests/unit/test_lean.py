"""RMSNorm and SwiGLU with recomputed gradients: equal to the model's own layers, and with less kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from solon.models import load_model, resolve
from solon.training.lean import lean

IDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 8, 7, 2]])


def _read(model: Any) -> tuple[Tensor, dict[str, Tensor], int]:
    """Logits, gradients of all weights, and the bytes that are kept between the two passes."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits: Tensor = model(input_ids=IDS).logits
    torch.autograd.backward(logits.square().mean())
    return logits.detach(), {n: p.grad for n, p in model.named_parameters()}, sum(kept.values())


def test_logits_and_gradients_are_the_models_own(tiny_model_folder: Path) -> None:
    model = load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)
    expected, wanted, before = _read(model)
    lean(model)
    logits, gradients, after = _read(model)
    assert torch.equal(logits, expected)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)
    assert after < before


def test_every_norm_and_gate_is_replaced(tiny_model_folder: Path) -> None:
    model = load_model(resolve(str(tiny_model_folder)), "cpu", torch.bfloat16)
    lean(model)
    layers = model.config.num_hidden_layers
    assert sum("forward" in vars(module) for module in model.modules()) == 3 * layers + 1


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(5).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    expected = norm(x)
    (wanted,) = torch.autograd.grad(expected.pow(3).sum(), x)
    single = LlamaRMSNorm(5)
    single.load_state_dict(norm.state_dict())
    lean(single)
    short = x.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(single(short).pow(3).sum(), short)
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("other", [GemmaRMSNorm(8), nn.LayerNorm(8), nn.Linear(8, 8)])
def test_a_layer_that_computes_something_else_is_left(other: nn.Module) -> None:
    # Gemma's scales by 1 + w: the same names, another function.
    nn.init.normal_(other.weight)  # type: ignore[arg-type]
    lean(other)
    assert "forward" not in vars(other)
