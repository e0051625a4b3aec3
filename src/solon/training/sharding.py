"""A trunk that lies in pieces on all processes (FSDP2), for models that no single device holds.

Each block of the frozen trunk is gathered for its own pass and let go again; adapters, heads and embeddings
lie whole in every process, for they are small. `accelerate launch` with an FSDP configuration asks for it.

A block can only be gathered by all processes together, while each samples and reads rows of its own, some
more than others. So every pass through the trunk is announced, and whoever waits for the others at a sum or
a maximum (`ranks`) lends its hand until all have arrived: it makes the same pass on one token.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from solon.engines.hooks import blocks, plain_head
from solon.errors import UsageError
from solon.training_settings import Reinforce

_ARRIVED, _READS, _LEARNS = 0.0, 1.0, 2.0  # What a process announces: waiting, a pass, one with a gradient


def wanted() -> bool:
    """Whether the launcher's configuration asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check(settings: Reinforce) -> None:
    """Refuse what a trunk in pieces cannot do.

    Raises:
        UsageError: all weights are trained, or the critic has passes of its own.
    """
    if settings.method != "lora" or settings.critic != "head":
        raise UsageError(
            "FSDP divides a frozen trunk: it needs reinforce.method: lora and reinforce.critic: head, not "
            f"{settings.method} and {settings.critic}. Set these, or launch without FSDP."
        )


class Divided:
    """The blocks of a transformers model, divided among all processes; every process must do so."""

    def __init__(self, model: Any, device: torch.device, beside: Sequence[nn.Module] = ()) -> None:
        """`beside` are modules that stay whole; they are moved to the device with the rest.

        Raises:
            RunError: the model's blocks cannot be found.
        """
        plain_head(model)  # Measured while the model is whole, and known from then on
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in blocks(model):
            whole = {p for name, p in block.named_parameters() if ".lora_" in name}
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        rest = {p for p in model.base_model.parameters() if not isinstance(p, DTensor)}
        fully_shard(model.base_model, mesh=mesh, ignored_params=rest)
        for module in (model, *beside):
            _move(module, device)
        self._model = model
        self._device = device
        self._helping = False
        model.base_model.register_forward_pre_hook(self._announce)
        model.get_input_embeddings().register_forward_hook(_want_gradient)

    def settle(self) -> None:
        """Return once every process is here; until then make the passes that the others make."""
        while (told := self._tell(_ARRIVED)) != _ARRIVED:
            self._lend_a_hand(told == _LEARNS)

    def _announce(self, *_: Any) -> None:
        if not self._helping:
            self._tell(_LEARNS if torch.is_grad_enabled() else _READS)

    def _tell(self, what: float) -> float:
        """What the busiest process does now."""
        said = torch.tensor([what], device=self._device)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return float(said)

    def _lend_a_hand(self, learns: bool) -> None:
        self._helping = True
        try:
            with torch.set_grad_enabled(learns):
                # No embedding of a token: a gradient must pass through every block, whichever adapter is on.
                width = self._model.config.get_text_config().hidden_size
                token_BTD = torch.zeros(
                    (1, 1, width), dtype=self._model.dtype, device=self._device, requires_grad=learns
                )
                found = self._model.base_model(inputs_embeds=token_BTD, use_cache=False)
                if learns:
                    torch.autograd.backward(found.last_hidden_state.sum() * 0.0)
        finally:
            self._helping = False


def _want_gradient(module: nn.Module, arguments: Any, states_BTD: Tensor) -> None:
    """Let gradients pass through every block, as in the passes that others make with us.

    Where the lower blocks have no adapter they would end above them, and the others would wait for ever.
    """
    if torch.is_grad_enabled():
        states_BTD.requires_grad_(True)


def _move(module: nn.Module, device: torch.device) -> None:
    """Move all that lies whole in this process. A piece is where its mesh is."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
