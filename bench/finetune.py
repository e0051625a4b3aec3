"""Fine-tuning with adapters beside TRL's SFTTrainer: steps a second, and that both lose the same.

Run: python bench/finetune.py [--rows 64] [--batch 4] [--repeat 3] [--dtype float32] [--device auto]

Both sides start from the same weights and adapters (same seed), take the same rows in the same order (the
constitution's worked comparisons: prompt and better answer), and make the same optimisation steps; rates,
clipping and decay are those of the stage. Sides take turns, each from the start, and the figure is the
median of the repetitions' ratios. The first step of a side is not timed. Losses are compared step by step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from record import device_options, report
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from solon.constitution import load_constitution
from solon.models import load_model, load_tokenizer, pick_device, pick_dtype, resolve
from solon.stages.finetune import as_dataset
from solon.training.adapters import lora_config
from solon.training.answer_trainer import AnswerTrainer
from solon.training.attention import load_trunk
from solon.training.encoding import Encoded, Encoder
from solon.training.trl_trainers import common_settings, on_one_device
from solon.training_settings import Finetune

SIDES = {"solon": (load_trunk, AnswerTrainer), "peer": (load_model, SFTTrainer)}


@dataclass
class _Clock(TrainerCallback):  # type: ignore[misc]
    ended: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])

    @property
    def rate(self) -> float:
        """Steps a second behind the first."""
        return (len(self.ended) - 1) / (self.ended[-1] - self.ended[0])


def rows(count: int, tokenizer: Any) -> list[Encoded]:
    """Prompts of the worked comparisons with their better answers, `count` of them."""
    settings, encoder = Finetune(), Encoder(tokenizer)
    shown = load_constitution("harmless").comparisons("training")[:count]
    return [encoder.encode(c.prompt, c.better, "stop", settings.max_tokens) for c in shown]


def train(side: str, encoded: Sequence[Encoded], batch: int, device: str, dtype: torch.dtype) -> _Clock:
    """One epoch from the start."""
    load, trainer_class = SIDES[side]
    source, settings, clock = resolve("embedded"), Finetune(), _Clock()
    model = load(source, device, dtype)
    rate, norm = settings.optimiser.learning_rate, settings.optimiser.max_grad_norm
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            bf16=False,
            max_length=None,
            **{**common_settings(Path(folder), rate, norm, 0, device == "cpu"), "save_strategy": "no"},
        )
        trainer = trainer_class(
            model=model,
            args=on_one_device(config),
            train_dataset=as_dataset(encoded),
            processing_class=load_tokenizer(source),
            peft_config=lora_config(settings.lora, model),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    device_options(parser)
    options = parser.parse_args()
    if options.rows < 2 * options.batch:
        parser.error("--rows: two batches at the least, for the first step is not timed")
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    encoded = rows(options.rows, load_tokenizer(resolve("embedded")))
    runs = [
        {side: train(side, encoded, options.batch, device, dtype) for side in SIDES}
        for _ in range(options.repeat)
    ]
    report(
        "finetune",
        "finetune_steps_per_second",
        statistics.median(run["solon"].rate for run in runs),
        statistics.median(run["peer"].rate for run in runs),
        statistics.median(run["solon"].rate / run["peer"].rate for run in runs),
        ratios=[run["solon"].rate / run["peer"].rate for run in runs],
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        rows=len(encoded),
        batch=options.batch,
        tokens=sum(len(row.ids) for row in encoded),
        difference=max(
            abs(a - b) for run in runs for a, b in zip(run["solon"].losses, run["peer"].losses, strict=True)
        ),
    )


if __name__ == "__main__":
    main()
