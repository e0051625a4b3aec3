"""Reaching into a transformers model's forward pass: what generation, scoring and reading need of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig

from solon.errors import RunError


@contextmanager
def neutral(model: Any) -> Iterator[None]:
    """Without the model's own generation settings: `generate` would fill in their penalties and cuts."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def before_head(model: Any, where: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Let only the hidden states at (row_N, column_N) reach the head: logits come out as [1, N, V].

    Through the model's own forward, so that a soft cap or scale of the logits stays in force.
    """

    def gather(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        row_N, column_N = (index.to(output.last_hidden_state.device) for index in where)
        output.last_hidden_state = output.last_hidden_state[row_N, column_N].unsqueeze(0)
        return output

    handle = model.base_model.register_forward_hook(gather)
    try:
        yield
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
    """Ends a forward pass at the wanted block, carrying its input [B, T, width]."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__("the wanted block is reached")
        self.hidden_BTD = hidden_BTD


def hidden_before(block: nn.Module, forward: Callable[[], object]) -> Tensor:
    """The hidden states [B, T, width] that enter `block` during `forward`, which ends there.

    Raises:
        RunError: the block is never run.
    """

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedError(args[0] if args else kwargs["hidden_states"])

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        forward()
    except _ReachedError as reached:
        return reached.hidden_BTD
    finally:
        handle.remove()
    raise RunError(f"{type(block).__name__}: the block is never run; its hidden states cannot be read.")
