"""The steps of one training in its stage's journal: written when done, forgotten where they are redone."""

import json
from collections.abc import Mapping

from solon.records import Step
from solon.store import Workspace


class StepLog:
    """Steps in the order of their numbers. `name` tells several trainings of one stage apart."""

    def __init__(self, workspace: Workspace, name: str | None = None) -> None:
        self._workspace = workspace
        self._name = name

    def write(
        self,
        step: int,
        origin: str,
        metrics: Mapping[str, float],
        tokens: int = 0,
        seconds: float = 0.0,
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """Journal a step. `timing` goes to the event log alone: equal runs have equal rows."""
        row = Step(origin=origin, step=step, metrics=json.dumps(metrics))
        self._workspace.record(self._batch(step), [row], tokens, seconds)
        told = {**metrics, **(timing or {})}
        self._workspace.events.write("step", stage=self._workspace.stage, origin=origin, step=step, **told)

    def keep(self, next_step: int) -> None:
        """Forget the steps from `next_step` on, of this training alone."""
        done = {self._batch(step) for step in range(next_step)}
        journal = self._workspace.journal
        journal.keep([name for name in journal.batches if name in done or not self._own(name)])

    def rows(self) -> list[Step]:
        """The steps done so far."""
        journal = self._workspace.journal
        own = [name for name in journal.batches if self._own(name)]
        return [Step.model_validate(row) for row in journal.rows(own)]

    def _batch(self, step: int) -> str:
        return f"{self._name}-{step:06d}" if self._name else f"{step:06d}"

    def _own(self, batch: str) -> bool:
        name, _, _ = batch.rpartition("-")
        return name == (self._name or "")
