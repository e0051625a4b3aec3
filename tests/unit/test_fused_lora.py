"""The fused adapter layers and float32 attention: equal to PEFT's and PyTorch's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor

from solon.models import load_model, resolve
from solon.training.adapters import add_adapter, train_only, trainable, using
from solon.training.attention import NAME, attend_in_float32
from solon.training.fused_lora import fuse
from solon.training_settings import Lora
from tests.ppo_setup import stir

IDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 8, 7, 2]])


@pytest.fixture
def adapted(tiny_model_folder: Path) -> Any:
    model = load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)
    model = add_adapter(model, Lora(rank=4, alpha=8), 0, "policy")
    model = add_adapter(model, Lora(rank=4, alpha=8), 1, "reward")
    train_only(model, "policy", "reward")
    stir(model, 2, scale=0.05)
    return model


def _read(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with using(model.get_base_model(), "policy"):
        logits: Tensor = model(input_ids=IDS).logits
    torch.autograd.backward(logits.square().mean())
    return logits.detach(), {n: p.grad for n, p in trainable(model).items() if p.grad is not None}


def _unfuse(model: Any) -> int:
    layers = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        del layer.forward
    return len(layers)


def test_logits_and_gradients_are_those_of_peft(adapted: Any) -> None:
    logits, gradients = _read(adapted)
    assert _unfuse(adapted) > 0
    expected, wanted = _read(adapted)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == wanted.keys()
    assert all(".policy." in name for name in wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_float32_adapter_beside_a_shorter_trunk_keeps_float32_gradients(adapted: Any) -> None:
    wanted = _read(adapted)[1]
    adapted.to(torch.bfloat16)
    for parameter in trainable(adapted).values():
        parameter.data = parameter.data.float()
    gradients = _read(adapted)[1]
    _unfuse(adapted)
    by_peft = _read(adapted)[1]
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        ours, peft = ((g - wanted[name]).norm() for g in (gradient, by_peft[name]))
        assert ours <= 2 * peft + 0.01 * wanted[name].norm(), "as near to float32 as PEFT's own"


def test_gradients_of_inputs_and_weights_by_finite_differences() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 4)), config).double()
    fuse(model)
    layer: Any = next(module for module in model.modules() if type(module) is Linear)
    stir(layer, 1, scale=0.5)
    low = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    weights = (layer.base_layer.weight, layer.base_layer.bias, *low)
    for weight in weights:
        weight.requires_grad_(True)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: layer(given[0]), (x, *weights))


def test_without_an_adapter_it_is_the_trunk(adapted: Any, tiny_model_folder: Path) -> None:
    plain = load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)
    with using(adapted.get_base_model(), None), torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_attention_in_float32_is_near_the_model_in_float32(tiny_model_folder: Path) -> None:
    source = resolve(str(tiny_model_folder))
    exact, short = (load_model(source, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16))
    attend_in_float32(exact)
    assert exact.config._attn_implementation == "sdpa"
    attend_in_float32(short)
    assert short.config._attn_implementation == NAME
    with torch.no_grad():
        error = (short(input_ids=IDS).logits - exact(input_ids=IDS).logits).abs().max()
    assert error < 0.05 * exact(input_ids=IDS).logits.abs().max()
