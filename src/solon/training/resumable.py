"""Training that goes on after a kill from its last saved step, to the same end.

A step's row is journalled before the checkpoint that contains the step, and rows after the checkpoint
are dropped on resume: they are made again, the same, because every step draws from its own seed.
"""

import json
import math
from typing import Any

import torch
from torch import nn

from solon.errors import RunError
from solon.records import Step
from solon.store import Workspace
from solon.training.adapters import restore, trainable
from solon.training.checkpoints import load, optimiser_tensors, restore_optimiser, save


class Resumable:
    """The trainable parameters of a model, their AdamW state, and the steps done so far."""

    def __init__(self, workspace: Workspace, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self._workspace = workspace
        self._folder = workspace.folder / "checkpoint"
        self._model = model
        self._optimiser = optimiser

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Restore the last checkpoint; the next step to do, and what was saved with it."""
        saved = load(self._folder)
        if saved is None:
            self._workspace.journal.keep([])
            return 0, {}
        tensors, meta = saved
        restore(self._model, tensors)
        restore_optimiser(self._optimiser, tensors, list(trainable(self._model)))
        self._workspace.journal.keep([_name(step) for step in range(meta["next"])])
        return int(meta["next"]), dict(meta["extra"])

    def record(self, step: int, origin: str, metrics: dict[str, float], tokens: int, seconds: float) -> None:
        """Journal a step. Raises RunError if a metric is no number; the last checkpoint stays."""
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise RunError(
                f"{self._workspace.stage}: {', '.join(bad)} is no number at step {step}. The last checkpoint "
                f"is kept. Lower {self._workspace.stage}'s learning rate, or set dtype=float32."
            )
        row = Step(origin=origin, step=step, metrics=json.dumps(metrics))
        self._workspace.record(_name(step), [row], tokens, seconds)
        self._workspace.events.write("step", stage=self._workspace.stage, step=step, **metrics)

    def save(self, next_step: int, **extra: Any) -> None:
        """Write a checkpoint after which `next_step` is to be done."""
        parameters = trainable(self._model)
        tensors = {name: p.detach() for name, p in parameters.items()}
        tensors |= optimiser_tensors(self._optimiser, list(parameters))
        save(self._folder, tensors, {"next": next_step, "extra": extra})

    def rows(self) -> list[Step]:
        return [
            Step.model_validate(row)
            for batch in self._workspace.journal.batches.values()
            for row in batch.rows
        ]


def anneal(optimiser: torch.optim.Optimizer, initial: float, step: int, steps: int) -> None:
    """Linear decay of the learning rate from `initial` at step 0 to 0 at `steps`."""
    for group in optimiser.param_groups:
        group["lr"] = initial * (1.0 - step / steps)


def _name(step: int) -> str:
    return f"{step:06d}"
