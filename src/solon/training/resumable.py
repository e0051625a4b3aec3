"""Training that goes on after a kill from its last saved step, to the same end.

A step's row is journalled before the checkpoint that contains the step, and rows after the checkpoint
are dropped on resume: they are made again, the same, because every step draws from its own seed.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from solon.errors import RunError
from solon.records import Step
from solon.store import Workspace
from solon.training.checkpoints import load, save
from solon.training.optimiser import Optimiser


class Resumable:
    """The trained parameters of a model, their AdamW state, and the steps done so far.

    `name` tells several trainings of one stage apart. With several processes only the `main` one writes.
    """

    def __init__(
        self, workspace: Workspace, optimiser: Optimiser, name: str | None = None, main: bool = True
    ) -> None:
        self._workspace = workspace
        self._name = name
        self._folder = workspace.folder / "checkpoint" / (name or "")
        self._optimiser = optimiser
        self._main = main

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Restore the last checkpoint; the next step to do, and what was saved with it."""
        saved = load(self._folder)
        if saved is None:
            self._keep(0)
            return 0, {}
        tensors, meta = saved
        self._optimiser.restore(tensors)
        self._keep(int(meta["next"]))
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
        """Journal a step. `timing` goes to the event log alone: equal runs have equal rows.

        Raises:
            RunError: a metric is no number; the last checkpoint stays.
        """
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise RunError(
                f"{self._workspace.stage}: {', '.join(bad)} is no number at step {step}. The last checkpoint "
                f"is kept. Lower {self._workspace.stage}'s learning rate, or set dtype=float32."
            )
        if not self._main:
            return
        row = Step(origin=origin, step=step, metrics=json.dumps(metrics))
        self._workspace.record(self._batch(step), [row], tokens, seconds)
        told = {**metrics, **(timing or {})}
        self._workspace.events.write("step", stage=self._workspace.stage, origin=origin, step=step, **told)

    def save(self, next_step: int, **extra: Any) -> None:
        """Write a checkpoint after which `next_step` is to be done."""
        if self._main:
            save(self._folder, self._optimiser.tensors(), {"next": next_step, "extra": extra})

    def rows(self) -> list[Step]:
        """The steps done so far, of this training alone."""
        batches = self._workspace.journal.batches.items()
        return [Step.model_validate(row) for name, b in batches if self._own(name) for row in b.rows]

    def _keep(self, next_step: int) -> None:
        if self._main:
            done = {self._batch(step) for step in range(next_step)}
            names = self._workspace.journal.batches
            self._workspace.journal.keep([n for n in names if n in done or not self._own(n)])

    def _batch(self, step: int) -> str:
        return f"{self._name}-{step:06d}" if self._name else f"{step:06d}"

    def _own(self, batch: str) -> bool:
        name, _, _ = batch.rpartition("-")
        return name == (self._name or "")
