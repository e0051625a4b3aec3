"""A linear layer with a low-rank adapter in as few passes over memory as it takes.

y = x W^T + b + s (x A^T) B^T, Hu et al. 2021 (arXiv 2106.09685), eq. 3 with s = alpha / r. PEFT writes the
second term out, scales it, and adds it: three passes over a tensor as large as y, which on a CPU cost as
much as the product with W. Here it is accumulated into y by the product itself, and so are its gradients.
The layers stay PEFT's; adapters of other kinds than plain LoRA go PEFT's own way. A float32 adapter beside a
shorter trunk computes in the trunk's type, as its gradients do, which are added up in float32.

Names carry shapes: N rows, I inputs, O outputs, R rank.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse(model: nn.Module) -> None:
    """Let every plain LoRA layer of the model compute so. Calling it again changes nothing."""
    for module in model.modules():
        if type(module) is Linear:
            module.forward = partial(_forward, module)


def _forward(layer: Any, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """As PEFT's `Linear.forward`, which it calls for whatever is not one plain adapter."""
    base, active = layer.get_base_layer(), layer.active_adapters
    if not layer.disable_adapters and len(active) == 1 and _is_plain(layer, base, active[0], x):
        # The casts are part of the graph: a gradient comes back in the adapter's own type.
        a_RI, b_OR = (m[active[0]].weight.to(x.dtype) for m in (layer.lora_A, layer.lora_B))
        if not torch.is_grad_enabled():
            return _accumulate(base(x), x, a_RI, b_OR, layer.scaling[active[0]])[0]
        found: Tensor = _Adapted.apply(x, base.weight, base.bias, a_RI, b_OR, layer.scaling[active[0]])  # type: ignore[no-untyped-call]
        return found
    found = Linear.forward(layer, x, *arguments, **named)
    return found


def _accumulate(y: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Add the adapter's part to `y`, in place; and what lies between its two matrices, scaled."""
    low = linear(x, a_RI).mul_(scale)
    y.flatten(0, -2).addmm_(low.flatten(0, -2), b_OR.T)
    return y, low


def _is_plain(layer: Any, base: nn.Module, adapter: str, x: Tensor) -> bool:
    return (
        type(base) is nn.Linear
        and adapter in layer.lora_A
        and adapter not in layer.lora_variant
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and layer.lora_B[adapter].bias is None
        and not layer.merged
        and not torch.is_autocast_enabled(x.device.type)  # What works in place it leaves in mixed types
        and x.dtype == base.weight.dtype
        and layer.lora_A[adapter].weight.dtype in (x.dtype, torch.float32)
    )


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        y, low = _accumulate(linear(x, w_OI, bias_O), x, a_RI, b_OR, scale)
        ctx.save_for_backward(x, w_OI, a_RI, b_OR, low)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w_OI, a_RI, b_OR, low = ctx.saved_tensors
        by_y_NO = gradients[0].flatten(0, -2)
        by_low_NR = (by_y_NO @ b_OR).mul_(ctx.scale)
        by_x = by_w = by_bias = by_a = by_b = None
        if ctx.needs_input_grad[0]:
            by_x = (by_y_NO @ w_OI).addmm_(by_low_NR, a_RI).view(x.shape)
        if ctx.needs_input_grad[1]:
            by_w = by_y_NO.T @ x.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            by_bias = by_y_NO.sum(0)
        if ctx.needs_input_grad[3]:
            by_a = by_low_NR.T @ x.flatten(0, -2)
        if ctx.needs_input_grad[4]:
            by_b = by_y_NO.T @ low.flatten(0, -2)
        return by_x, by_w, by_bias, by_a, by_b, None
