"""Weights laid out once for the processor's matrix products, while tokens are generated.

On a CPU, PyTorch brings a layer's weights into the matrix library's own layout at every call. With the few
rows of a decoding step that costs as much as the product. In bfloat16, done once for a whole answer, the same
kernels run on the same numbers: results are equal bit for bit. In float32 the plain product is another
library's (MKL), which is slow at 4 to 64 rows; here results differ by rounding. The packed copies live as
long as the block, so weights that are trained between two answers are packed anew.
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
FEW = 4  # Rows below which a plain product in float32 is the faster one.
_DTYPES = (torch.bfloat16, torch.float32)


@contextmanager
def packed(model: Any, new_tokens: int) -> Iterator[None]:
    """Let the model's plain linear layers use packed weights, where that is faster; without gradients."""
    layers = [module for module in model.modules() if _fits(module)] if _pays(model, new_tokens) else []
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
        product = _product if layer.weight.dtype == torch.bfloat16 else partial(_float_product, layer.weight)
        layer.forward = partial(product, weight, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _pays(model: Any, new_tokens: int) -> bool:
    return (
        model.device.type == "cpu"
        and model.dtype in _DTYPES
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
        and module.weight.dtype in _DTYPES
        and min(module.weight.shape) > 64
    )


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _float_product(plain: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """As `_product`, but with the `plain` weights where there are few rows."""
    few = x.numel() < FEW * x.shape[-1]
    return nn.functional.linear(x, plain, bias) if few else _product(weight, bias, x)
