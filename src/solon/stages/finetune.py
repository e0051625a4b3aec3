"""Stage 4, fine-tune (SL-CAI): the model learns the revisions (Bai et al. 2022, sec. 3).

Rows are pairs of red-team prompt and revision, mixed with the model's own answers to helpful prompts;
the loss is on the answer only. Training is TRL's SFTTrainer on rows that are encoded here, with labels
made from explicit lengths.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from solon.errors import RunError
from solon.models import load_tokenizer, pick_device, pick_dtype
from solon.pipeline import Inputs
from solon.progress import Advance
from solon.recipe import Recipe
from solon.records import Finish, Step, Written
from solon.stages.common import or_least
from solon.store import StageResult, Workspace
from solon.text import complete_sentences, is_degenerate
from solon.training.adapters import lora_config, save_merged
from solon.training.answer_trainer import IGNORED, AnswerTrainer
from solon.training.attention import load_trunk
from solon.training.encoding import Encoded, Encoder
from solon.training.trl_trainers import common_settings, last_checkpoint, on_one_device
from solon.training_settings import Finetune


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    settings = recipe.finetune
    device = pick_device(recipe.device)
    dtype = pick_dtype(recipe.dtype, device)
    tokenizer = load_tokenizer(inputs.base)
    rows = inputs.rows("revise", Written)
    encoded = list(training_rows(rows, settings, Encoder(tokenizer)))
    if not encoded:
        raise RunError(
            "fine-tuning has no usable row: every revision was rejected by a filter (see the column unusable "
            "of 03_revise/rows.parquet), or its prompt fills finetune.max_tokens. Raise revise.prompts, "
            "revise.candidates or finetune.max_tokens."
        )
    # Full fine-tuning keeps float32 weights: bfloat16 would round small updates away.
    model = load_trunk(inputs.base, device, dtype if settings.method == "lora" else torch.float32)
    steps_planned = settings.optimiser.epochs * math.ceil(len(encoded) / settings.optimiser.batch)
    with workspace.reporter.task("finetune", steps_planned, "steps") as advance:
        watch = _Watch(workspace, advance)
        cached = getattr(model.config, "use_cache", True)
        trainer = _trainer(recipe, model, tokenizer, encoded, watch, workspace.folder / "checkpoint", dtype)
        trainer.train(resume_from_checkpoint=last_checkpoint(workspace.folder / "checkpoint"))
    steps = _steps(trainer.state.log_history)
    model.config.use_cache = cached  # The trainer turns it off, and whoever loads the model would go without
    save_merged(trainer.model, tokenizer, workspace.folder / "model", dtype)
    losses = [json.loads(step.metrics)["loss"] for step in steps]
    metrics = {"rows": len(encoded), "loss_first": losses[0], "loss_last": losses[-1]}
    tokens = settings.optimiser.epochs * sum(len(e.ids) for e in encoded)
    return StageResult(steps, metrics, outputs=("model",), tokens=tokens)


def training_rows(rows: Sequence[Written], settings: Finetune, encoder: Encoder) -> Iterator[Encoded]:
    """Every row that is fit for training; of an answer to a helpful prompt its first tokens, if so set.

    A row whose prompt leaves no room for an answer teaches nothing, and is left out.
    """
    for row, text, finish in _fit(rows, settings):
        whole = encoder.encode(row.prompt, text, finish, settings.max_tokens)
        most = settings.helpful_tokens if row.kind == "answer" else None
        if whole.answer:
            yield Encoded(whole.prompt, whole.answer[:most])


def training_pairs(rows: Sequence[Written], settings: Finetune) -> Iterator[tuple[str, str, Finish]]:
    """(prompt, answer, finish) of every row that is fit for training."""
    return ((row.prompt, text, finish) for row, text, finish in _fit(rows, settings))


def _fit(rows: Sequence[Written], settings: Finetune) -> Iterator[tuple[Written, str, Finish]]:
    for row in _targets(rows, settings):
        text, finish = _ended(row) if settings.trim else (row.text, row.finish)
        if is_degenerate(text) is None:
            yield row, text, finish


def _targets(rows: Sequence[Written], settings: Finetune) -> Iterator[Written]:
    revisions = [r for r in rows if r.kind == "revision" and r.chosen and r.unusable is None]
    if settings.use == "final":
        # Rows come round by round, so the last one of a prompt wins.
        revisions = list({row.prompt_id: row for row in revisions}.values())
    yield from _best(revisions, settings.best)
    if settings.helpful:
        ordinary = (r for r in rows if r.kind == "answer" and r.prompt_kind == "helpful")
        yield from (r for r in ordinary if r.unusable is None)


def _best(revisions: Sequence[Written], share: float) -> list[Written]:
    """The revisions that are surest better than the first answers, in their order; one not judged comes last.

    Not those with the highest score: that is beside a prompt's other candidates, which may be good or bad.
    """
    if share == 1:
        return list(revisions)
    ranked = sorted(revisions, key=lambda row: or_least(row.better), reverse=True)
    kept = {row.id for row in ranked[: math.ceil(share * len(ranked))]}
    return [row for row in revisions if row.id in kept]


def _ended(row: Written) -> tuple[str, Finish]:
    """A text that was cut off, ended at its last full sentence: it teaches the model to stop."""
    if row.finish == "stop":
        return row.text, "stop"
    shortened = complete_sentences(row.text)
    return (
        (shortened, "stop")
        if shortened != row.text or shortened.endswith((".", "!", "?"))
        else (row.text, "length")
    )


def as_dataset(encoded: Sequence[Encoded]) -> Dataset:
    """Rows as TRL takes them, with labels on the answer's tokens alone, made from explicit lengths."""
    labels = [[IGNORED] * len(e.prompt) + list(e.answer) for e in encoded]
    return Dataset.from_dict({"input_ids": [list(e.ids) for e in encoded], "labels": labels})


def _trainer(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    watch: "_Watch",
    checkpoints: Path,
    dtype: torch.dtype,
) -> AnswerTrainer:
    settings = recipe.finetune
    optimiser = settings.optimiser
    on_cpu = pick_device(recipe.device) == "cpu"
    config = SFTConfig(
        per_device_train_batch_size=optimiser.batch,
        num_train_epochs=optimiser.epochs,
        save_steps=optimiser.save_every,
        bf16=settings.method == "full" and dtype == torch.bfloat16,
        max_length=None,
        **common_settings(checkpoints, optimiser.learning_rate, optimiser.max_grad_norm, recipe.seed, on_cpu),
    )
    trainer = AnswerTrainer(
        model=model,
        args=on_one_device(config),
        train_dataset=as_dataset(encoded),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora, model) if settings.method == "lora" else None,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)  # It prints raw dictionaries among our lines
    return trainer


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports every step, and stops at a loss that is no number."""

    def __init__(self, workspace: Workspace, advance: Advance) -> None:
        self._workspace = workspace
        self._advance = advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"fine-tuning: the loss is {logs['loss']} at step {state.global_step}. "
                "Lower finetune.optimiser.learning_rate, or set dtype=float32."
            )
        self._workspace.events.write("step", stage="finetune", step=state.global_step, loss=logs["loss"])
        self._advance(1)


def _steps(history: Sequence[dict[str, Any]]) -> list[Step]:
    return [
        Step(
            origin="trl.SFTTrainer",
            step=int(log["step"]),
            metrics=json.dumps({"loss": log["loss"], "learning_rate": log["learning_rate"]}),
        )
        for log in history
        if "loss" in log
    ]
