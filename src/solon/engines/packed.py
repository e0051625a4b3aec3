"""Weights laid out once for the processor's matrix products, while tokens are generated.

In bfloat16 on a CPU, PyTorch brings a layer's weights into oneDNN's own layout at every call. With the few
rows of a decoding step that costs as much as the product. Done once for a whole answer, the same kernels run
on the same numbers: results are equal bit for bit. The packed copies live as long as the block, so weights
that are trained between two answers are packed anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from solon.engines.hooks import divided

_ROWS = 16  # Of the products that the layout is made for; others run on it as well.
WORTH = 8  # New tokens an answer from which packing, about three tokens' time, is worth it.


@contextmanager
def packed(model: Any, new_tokens: int) -> Iterator[None]:
    """Let the model's plain linear layers use packed weights, where that is faster; without gradients."""
    layers = [module for module in model.modules() if _fits(module)] if _pays(model, new_tokens) else []
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
        layer.forward = partial(_product, weight, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _pays(model: Any, new_tokens: int) -> bool:
    return (
        model.device.type == "cpu"
        and model.dtype == torch.bfloat16
        and new_tokens >= WORTH
        and not divided(model)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _fits(module: nn.Module) -> bool:
    """Not a subclass, nor a layer that already computes in another way; thin ones gain nothing."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype == torch.bfloat16
        and min(module.weight.shape) > 64
    )


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
