"""Attention to a start that all rows of a batch share, through one copy of its keys and values.

Worked examples and system texts can be most of a prompt. Copied for every row, their keys and values are
read from memory again for every row and token. Here all rows' queries meet the one copy in a single matrix
product, and the softmax over [start, own columns] is put together from its two parts (Juravsky et al. 2024,
Hydragen, arXiv 2402.05099, sec. 3.1): with a, b the parts' logsumexp,

    out = out_own + sigmoid(a - b) (out_start - out_own).

Names carry shapes: B rows, H heads, K key heads, G = H / K queries for each, T queries, C columns, S columns
of the start, D width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from solon.engines.hooks import divided, shares_starts

NAME = "sdpa_shared_start"
WORTH = 24  # Columns: of a shorter start two products cost more than one.


@dataclass
class Start:
    """Keys and values [1, K, S, D] of one layer's start. `read`: attention has found it."""

    keys: Tensor
    values: Tensor
    read: bool = False

    @property
    def width(self) -> int:
        return self.keys.shape[-2]


class KeptLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer: a start apart, if any, and each row's own columns.

    The own columns are the first of buffers that have room for an answer: appending copies nothing.
    """

    def __init__(self, room: int, start: Start | None = None, own: DynamicLayer | None = None) -> None:
        """`own` is a layer whose columns are taken over."""
        super().__init__()
        self.start = start
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None
        if own is not None and own.is_initialized and own.get_seq_length():
            self.lazy_initialization(own.keys, own.values)
            self._store(own.keys, own.values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before, count = self._own_width(), key_states.shape[-2]
        if self._buffers is None or before + count > self._buffers[0].shape[-2]:
            self._store(*super().update(key_states, value_states))
        else:
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[..., before : before + count, :] = new
            self._show(before + count)
        # The only way from here to the attention, which is handed this very tensor.
        self.keys.solon_start = self.start  # type: ignore[attr-defined]
        return self.keys, self.values

    def place(self, keys: Tensor, values: Tensor, rows: Sequence[int], count: int, width: int) -> None:
        """Put in the own columns of these of `count` rows, the last of `width`; those before stay zero."""
        if self._buffers is None:
            self.lazy_initialization(keys, values)
            self._buffers = (
                _blank(keys, count, width + self._room),
                _blank(values, count, width + self._room),
            )
            self._show(width)
        for buffer, own in zip(self._buffers, (keys, values), strict=True):
            buffer[rows, :, width - own.shape[-2] : width] = own

    def get_seq_length(self) -> int:
        return (self.start.width if self.start else 0) + self._own_width()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The rows of these indices, of which there may be fewer than before."""
        if self._buffers is not None:
            width = self._own_width()
            self._buffers = (self._buffers[0][beam_idx], self._buffers[1][beam_idx])
            self._show(width)

    def _own_width(self) -> int:
        return 0 if self._buffers is None else int(self.keys.shape[-2])

    def _store(self, keys: Tensor, values: Tensor) -> None:
        """New buffers that begin with these columns."""
        self._buffers = (_with_room(keys, self._room), _with_room(values, self._room))
        self._show(keys.shape[-2])

    def _show(self, width: int) -> None:
        assert self._buffers is not None
        self.keys = self._buffers[0][..., :width, :]
        self.values = self._buffers[1][..., :width, :]


def _blank(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_zeros(rows, like.shape[1], width, like.shape[-1])


def _with_room(x: Tensor, room: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, room))


def keeps_apart(model: Any) -> bool:
    """Whether a shared start can be kept apart: PyTorch's attention on a CPU, in blocks that see all columns.

    On a GPU its kernels want all columns in one tensor.
    """
    return (
        model.device.type == "cpu"
        and shares_starts(model)
        and not divided(model)
        and model.config.get_text_config()._attn_implementation.startswith("sdpa")
        and bool(model._can_set_attn_implementation())
    )


@contextmanager
def start_apart(model: Any) -> Iterator[None]:
    """Within the block the model's attention looks for a start in what the cache hands it."""
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def own_mask(mask_BC: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, C, C] of a causal pass over own columns; `mask_BC` is true where a token is real.

    Padding sees itself, so that nothing is 0 / 0.
    """
    width = mask_BC.shape[1]
    seen_BCC = mask_BC[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=mask_BC.device).tril()
    seen_BCC |= torch.eye(width, dtype=torch.bool, device=mask_BC.device)
    return additive(seen_BCC, dtype).unsqueeze(1)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where something is seen, the type's least number elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    start: Start | None = getattr(key, "solon_start", None)
    if start is None:
        found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return found
    start.read = True
    return _from_parts(query, key, value, start, attention_mask, scaling), None


def _from_parts(
    q_BHTD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, start: Start, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attention to start and own columns, [B, T, H, D]. Every query sees the whole start."""
    B, H, T, D = q_BHTD.shape
    K = k_BKCD.shape[1]
    G = H // K
    # The queries of a key head lie side by side: no key is repeated.
    q_BKND = q_BHTD.reshape(B, K, G * T, D)
    if mask is not None:
        mask = mask.expand(B, 1, T, mask.shape[-1]).repeat(1, 1, G, 1)
    own_BKND, b_BKN = _flash(q_BKND, k_BKCD, v_BKCD, mask, scale)
    q_1KMD = q_BKND.transpose(0, 1).reshape(1, K, B * G * T, D)
    shared_1KMD, a_1KM = _flash(q_1KMD, start.keys, start.values, None, scale)
    shared_BKND = shared_1KMD.view(K, B, G * T, D).transpose(0, 1)
    a_BKN = a_1KM.reshape(K, B, G * T).transpose(0, 1)
    weight_BKN1 = torch.sigmoid(a_BKN - b_BKN).unsqueeze(-1)
    out_BKND = torch.lerp(own_BKND.float(), shared_BKND.float(), weight_BKN1).to(q_BHTD.dtype)
    return out_BKND.view(B, K, G, T, D).permute(0, 3, 1, 2, 4).reshape(B, T, H, D)


def _flash(
    q_BKND: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """PyTorch's attention with the logsumexp [B, K, N] that it computes anyway."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BKND, k_BKCD, v_BKCD, 0.0, False, attn_mask=mask, scale=scale
    )
    return found


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
