"""Reaching into a transformers model's forward pass: what generation, scoring and reading need of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from solon.errors import RunError

_LARGE = 30.0  # Logits at which a soft cap shows
_plain_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def before_head(model: Any, where: tuple[Tensor, Tensor]) -> Iterator[list[Tensor]]:
    """Let only the hidden states at (row_N, column_N) reach the head: logits come out as [1, N, V].

    Through the model's own forward, so that a soft cap or scale of the logits stays in force. Yields a list
    that holds the gathered hidden states [N, width] after the forward pass.
    """
    kept: list[Tensor] = []

    def gather(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        row_N, column_N = (index.to(output.last_hidden_state.device) for index in where)
        kept.append(output.last_hidden_state[row_N, column_N])
        output.last_hidden_state = kept[-1].unsqueeze(0)
        return output

    handle = model.base_model.register_forward_hook(gather)
    try:
        yield kept
    finally:
        handle.remove()


def blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks: the list that has as many as the config says."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise RunError(f"{type(model).__name__}: no list of {count} blocks found; hidden states cannot be read.")


class _ReachedError(Exception):
    """Ends a forward pass once the deepest wanted block is reached."""


def hidden_at(model: Any, depths: Sequence[int], forward: Callable[[], Any]) -> list[Tensor]:
    """The hidden states [B, T, width] that enter the blocks of these numbers during `forward`.

    The number of blocks stands for what leaves the last one, normed. Nothing above the deepest is computed,
    unless the model is divided: its processes pass all blocks together.

    Raises:
        RunError: a block is never run.
    """
    layers, deepest, whole = blocks(model), max(depths), not divided(model)
    kept: dict[int, Tensor] = {}

    def keep(depth: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[depth] = args[0] if args else kwargs["hidden_states"]
            if depth == deepest and whole:
                raise _ReachedError

        return hook

    inner = sorted({depth for depth in depths if depth < len(layers)})
    handles = [layers[d].register_forward_pre_hook(keep(d), with_kwargs=True) for d in inner]
    try:
        output = forward()
        kept[len(layers)] = output.last_hidden_state
    except _ReachedError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not set(depths) <= set(kept):
        raise RunError(f"{type(model).__name__}: a block is never run; its hidden states cannot be read.")
    return [kept[depth] for depth in depths]


def plain_head(model: Any) -> Tensor | None:
    """The weights [V, width] of a head that is a matrix and nothing else; None if its logits are changed.

    Soft caps and multipliers have another name in every family of models: each model is measured, once.
    """
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        return None
    if model not in _plain_heads:
        _plain_heads[model] = _leaves_logits_alone(model, head)
    return head.weight if _plain_heads[model] else None


@torch.no_grad()
def _leaves_logits_alone(model: Any, head: nn.Linear) -> bool:
    """Whether logits as large as a trained model's come out of the model as they leave its head."""
    generator = torch.Generator().manual_seed(0)
    probe_BTD = torch.randn(1, 4, head.in_features, generator=generator).to(head.weight)
    probe_BTD *= _LARGE / head(probe_BTD).abs().max()

    def put(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = probe_BTD
        return output

    handle = model.base_model.register_forward_hook(put)
    try:
        ids_BT = torch.zeros(1, 4, dtype=torch.long, device=model.device)
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    finally:
        handle.remove()
    return torch.allclose(logits_BTV.float(), head(probe_BTD).float(), rtol=0.02, atol=0.02 * _LARGE)


def divided(model: Any) -> bool:
    """Whether parts of the model lie on other processes (`training.sharding`)."""
    return isinstance(model.base_model, FSDPModule)


def shares_starts(model: Any) -> bool:
    """Whether every block of the model attends to all that came before, so that a mask of ours holds.

    Windows and distances that count columns in place of positions (GPT-Neo's local blocks, ALiBi) do not, nor
    do models that are told no positions (BLOOM, RWKV).
    """
    if "position_ids" not in signature(model.base_model.forward).parameters:
        return False
    config = model.config.get_text_config()
    nested = getattr(config, "attn_config", None)
    by_column = [getattr(config, name, None) for name in ("window_size", "attention_types", "alibi")]
    if any((*by_column, getattr(nested, "alibi", None))):
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
