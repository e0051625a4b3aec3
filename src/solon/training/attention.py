"""Attention in float32 inside a model that computes in a shorter type on the CPU.

PyTorch's attention on the CPU has a slow gradient in bfloat16: where the processor has no matrix unit for
it, two to three times slower than casting to float32 and back, and less exact. The rest stays as it is.
The casts are made again for the gradient: kept, they would take as much memory as the whole model.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from solon.models import ModelSource, load_model
from solon.training.lean import lean

NAME = "sdpa_float32"


def load_trunk(source: ModelSource, device: str, dtype: torch.dtype) -> Any:
    """A model to train with adapters or whole. Errors are those of `load_model`."""
    model = load_model(source, device, dtype)
    attend_in_float32(model)
    lean(model)
    return model


def attend_in_float32(model: Any) -> None:
    """Switch the model's attention, unless it runs in float32, elsewhere than on a CPU, or not on SDPA."""
    chosen = model.config.get_text_config()._attn_implementation
    if model.device.type == "cpu" and model.dtype != torch.float32 and chosen == "sdpa":
        model.set_attn_implementation(NAME)


def _attention(module: Any, query: Tensor, *others: Any, **arguments: Any) -> tuple[Tensor, Tensor | None]:
    found: tuple[Tensor, Tensor | None]
    if not (torch.is_grad_enabled() and query.requires_grad):
        return _in_float32(module, query, *others, **arguments)
    drops = arguments.get("dropout", 0.0) > 0  # Then the second time must draw what the first did
    found = checkpoint(
        _in_float32, module, query, *others, use_reentrant=False, preserve_rng_state=drops, **arguments
    )
    return found


def _in_float32(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    found, weights = sdpa_attention_forward(
        module, query.float(), key.float(), value.float(), attention_mask, **arguments
    )
    return found.to(query.dtype), weights


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
