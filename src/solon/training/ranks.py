"""The processes of one training run, and what they tell each other: sums, and nothing else.

Prompt i of a step is the work of process i modulo their number. Whitening, losses and metrics are sums
over all processes divided by counts over all processes, so that two processes learn what one would.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from solon.errors import RunError
from solon.saving import first_line


class Ranks:
    """This process among all. Alone, a sum is what it was."""

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        device: torch.device | str = "cpu",
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """`settle` is called before this process meets the others, and may help them to get there."""
        self.rank = rank
        self.count = count
        self._device = torch.device(device)
        self._settle = settle

    def mine(self, items: int) -> list[int]:
        """Which of `items` things are this process's work."""
        return list(range(self.rank, items, self.count))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, on the device that x came from."""
        if self.count == 1:
            return x
        total = x.to(self._device, copy=True)
        self._call(lambda: dist.all_reduce(total))
        return total.to(x.device)

    def max(self, x: float) -> float:
        """The largest of all processes' values."""
        if self.count == 1:
            return x
        largest = torch.tensor([x], device=self._device)
        self._call(lambda: dist.all_reduce(largest, op=dist.ReduceOp.MAX))
        return float(largest)

    def join(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all processes, in place: the gradients of one loss."""
        if self.count == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self._call(lambda: dist.all_reduce(flat))
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def _call(self, collective: Callable[[], object]) -> None:
        try:
            self._settle()
            collective()
        except RuntimeError as error:
            raise RunError(
                f"process {self.rank} of {self.count} lost touch with the others ({first_line(error)}): one "
                "of them has stopped. The last checkpoint is kept; start all of them again."
            ) from error
