"""AdamW on float32 copies of parameters that may compute in a shorter type, and its state as named tensors.

Adapters beside a bfloat16 trunk compute in bfloat16, which is several times faster than float32 on the
processors that have it; but a small step on such a number is lost in its eight bits. So the optimiser moves
float32 masters and copies them into the model (Micikevicius et al. 2018, arXiv 1710.03740, sec. 3.1).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from solon.training.checkpoints import optimiser_tensors, restore_optimiser

# Huang et al. 2022, "The 37 implementation details of PPO", detail 3.
PPO_EPSILON = 1e-5


class Optimiser:
    """Moves named parameters; a parameter that is float32 already is its own master."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], learning_rate: float, epsilon: float = 1e-8
    ) -> None:
        self.learning_rate = learning_rate
        self._parameters = dict(parameters)
        self._masters = {name: _master(p) for name, p in self._parameters.items()}
        self._adam = torch.optim.AdamW(
            list(self._masters.values()), lr=learning_rate, eps=epsilon, weight_decay=0.0
        )

    def anneal(self, step: int, steps: int) -> float:
        """Linear decay of the learning rate, from its full size at step 0 to 0 at `steps`; the rate."""
        rate = self.learning_rate * (1.0 - step / steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        return rate

    def collect(self) -> None:
        """Add the gradients of one backward pass to the masters' float32 ones, and clear them."""
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def step(self, max_norm: float, join: Callable[[list[Tensor]], None] | None = None) -> float:
        """Move by the collected gradients, clipped to `max_norm`; their norm before clipping.

        `join` adds the gradients up over all processes, in place. A parameter without a gradient stays.
        """
        self.collect()
        masters = list(self._masters.values())
        if join is not None:
            _join_gradients(masters, join)
        norm = torch.nn.utils.clip_grad_norm_(masters, max_norm)
        self._adam.step()
        self.discard()
        self._publish()
        return float(norm)

    def discard(self) -> None:
        """Forget all gradients."""
        self._adam.zero_grad(set_to_none=True)
        for parameter in self._parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Masters and AdamW's moments: all that a checkpoint needs."""
        return self.masters() | optimiser_tensors(self._adam, list(self._masters))

    def masters(self) -> dict[str, Tensor]:
        """The parameters in float32, by name."""
        return {name: master.detach() for name, master in self._masters.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave. Raises RunError if it is of other parameters."""
        restore_optimiser(self._adam, tensors, list(self._masters))
        for name, master in self._masters.items():
            master.copy_(tensors[name])
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        for name, parameter in self._parameters.items():
            if self._masters[name] is not parameter:
                parameter.copy_(self._masters[name])


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def _join_gradients(masters: list[nn.Parameter], join: Callable[[list[Tensor]], None]) -> None:
    """Every process joins with the same tensors, zeros where it has none; where none has one, none is left.

    Zeros in the place of no gradient would count as AdamW steps: its bias correction then takes a history
    that is not there for a small one, and the true steps that follow are several times too large.
    """
    having = torch.tensor([float(m.grad is not None) for m in masters], device=masters[0].device)
    gradients = [torch.zeros_like(m) if m.grad is None else m.grad for m in masters]
    join([*gradients, having])
    for master, gradient, count in zip(masters, gradients, having.tolist(), strict=True):
        master.grad = gradient if count else None
