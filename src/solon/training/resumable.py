"""Training that goes on after a kill from its last saved step, to the same end.

A step's row is journalled before the checkpoint that contains the step, and rows after the checkpoint
are dropped on resume: they are made again, the same, because every step draws from its own seed.
"""

import math
from collections.abc import Mapping
from typing import Any

from solon.errors import RunError
from solon.records import Step
from solon.store import Workspace
from solon.training.checkpoints import load, save
from solon.training.optimiser import Optimiser
from solon.training.step_log import StepLog


class Resumable:
    """The trained parameters of a model, their AdamW state, and the steps done so far.

    `name` tells several trainings of one stage apart. With several processes only the `main` one writes.
    """

    def __init__(
        self, workspace: Workspace, optimiser: Optimiser, name: str | None = None, main: bool = True
    ) -> None:
        self._stage = workspace.stage
        self._log = StepLog(workspace, name)
        self._folder = workspace.folder / "checkpoint" / (name or "")
        self._optimiser = optimiser
        self._main = main

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Restore the last checkpoint; the next step to do, and what was saved with it."""
        saved = load(self._folder)
        if saved is None:
            self._forget_after(0)
            return 0, {}
        tensors, meta = saved
        self._optimiser.restore(tensors)
        self._forget_after(int(meta["next"]))
        return int(meta["next"]), dict(meta["extra"])

    def record(
        self,
        step: int,
        origin: str,
        metrics: Mapping[str, float],
        tokens: int,
        seconds: float,
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """Journal a step, as `StepLog.write` does.

        Raises:
            RunError: a metric is no number; the last checkpoint stays.
        """
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise RunError(
                f"{self._stage}: {', '.join(bad)} is no number at step {step}. Lower "
                f"{self._stage}'s learning rate, or set dtype=float32; the stage then starts again."
            )
        if self._main:
            self._log.write(step, origin, metrics, tokens, seconds, timing)

    def save(self, next_step: int, **extra: Any) -> None:
        """Write a checkpoint after which `next_step` is to be done."""
        if self._main:
            save(self._folder, self._optimiser.tensors(), {"next": next_step, "extra": extra})

    def rows(self) -> list[Step]:
        """The steps done so far, of this training alone."""
        return self._log.rows()

    def _forget_after(self, next_step: int) -> None:
        if self._main:
            self._log.keep(next_step)
