"""RMSNorm and SwiGLU whose gradients need no more than their inputs.

Written as single operations, both keep float32 copies and intermediate products for the gradient: in a
small model a third of all that training holds. Here they are computed again, which on a CPU is faster than
bringing them back from memory.

    RMSNorm: y = w x r with r = 1 / sqrt(mean x^2 + eps); Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4.
    SwiGLU: y = silu(g) u with silu(g) = g sigmoid(g); Shazeer 2020 (arXiv 2002.05202), eq. 6.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def lean(model: nn.Module) -> None:
    """Let every such layer of the model compute so. A layer is known by what it gives, not by its name.

    Layers that give anything else on a trial are left as they are.
    """
    for module in list(model.modules()):
        named = dict(module.named_children()).keys()
        if named == _MLP:
            _replace(module, _gated, module.gate_proj)
        elif not named and isinstance(_epsilon(module), float) and "weight" in module._parameters:
            _replace(module, _normed, module)


def _replace(module: nn.Module, forward: Any, like: Any) -> None:
    weight = like.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        expected, found = module(x), forward(module, x)
    if isinstance(expected, Tensor) and torch.equal(expected, found):
        module.forward = partial(forward, module)


def _epsilon(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _normed(module: Any, x: Tensor) -> Tensor:
    found: Tensor = _RMSNorm.apply(x, module.weight, _epsilon(module))  # type: ignore[no-untyped-call]
    return found


def _gated(module: Any, x: Tensor) -> Tensor:
    inner = _SwiGLU.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
    found: Tensor = module.down_proj(inner)
    return found


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_D: Tensor, epsilon: float) -> Tensor:
        long = x.float()
        r = torch.rsqrt(long.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, w_D, r)
        return w_D * (long * r).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With n = x r: dx = r (w dy - n mean(w dy n)), dw = sum dy n."""
        x, w_D, r = ctx.saved_tensors
        by_y, n = gradients[0].float(), x.float() * r
        by_w = (by_y * n).flatten(0, -2).sum(0).to(w_D.dtype) if ctx.needs_input_grad[1] else None
        by_n = by_y * w_D.float()
        shared = (by_n * n).mean(-1, keepdim=True)
        by_x = by_n.sub_(n.mul_(shared)).mul_(r).to(x.dtype)
        return by_x, by_w, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_y = gradients[0]
        by_up = silu(gate).mul_(by_y)
        by_gate = torch.ops.aten.silu_backward(by_y * up, gate)
        return by_gate, by_up
