"""The processes of one run, as `accelerate launch` or torchrun start them. Imports no torch.

The first process does every stage; the others wait on its run folder, which all of them see, and join it in
the stages that share their work.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_LAUNCHED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "ACCELERATE_",
    "FSDP_",
)
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Process:
    """This process among all that were launched together."""

    rank: int
    count: int

    @property
    def main(self) -> bool:
        return self.rank == 0


def this_process() -> Process:
    """What the launcher says; alone where there was none."""
    return Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def alone() -> Iterator[None]:
    """Hide the other processes from libraries: what one process does by itself must not wait for them."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_LAUNCHED)}
    for name in hidden:
        del os.environ[name]
    _forget()
    try:
        yield
    finally:
        os.environ.update(hidden)
        _forget()


def _forget() -> None:
    """Let accelerate look at the environment anew: it keeps what it has seen first."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def wait_until(ready: Callable[[], bool]) -> None:
    """Poll. The launcher ends this process if another one fails."""
    while not ready():
        time.sleep(_POLL_SECONDS)
