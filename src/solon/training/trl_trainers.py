"""What TRL's trainers have in common here: settings that every run wants, and going on after a kill."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainingArguments

Config = TypeVar("Config", bound=TrainingArguments)

# The transformers that vLLM asks for have only the name that newer ones deprecate.
_NEW_NAME, _OLD_NAME = "activation_checkpointing", "gradient_checkpointing"
_KNOWN = {field.name for field in fields(TrainingArguments)}
_CHECKPOINTING = _NEW_NAME if _NEW_NAME in _KNOWN else _OLD_NAME


def common_settings(
    folder: Path, learning_rate: float, max_grad_norm: float, seed: int, on_cpu: bool
) -> dict[str, Any]:
    """Linear decay to 0, one checkpoint in `folder`, every step logged as it is, nothing shown or sent."""
    return {
        "output_dir": str(folder),
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "max_grad_norm": max_grad_norm,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "use_cpu": on_cpu,
        _CHECKPOINTING: not on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "report_to": [],
        "disable_tqdm": True,
        "seed": seed,
        "data_seed": seed,
    }


def on_one_device(config: Config) -> Config:
    """The same settings for one device: without a launcher the trainer would spread over all GPUs it sees."""
    config._n_gpu = 1  # TRL refuses to run on more
    return config


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint. The trainer writes its state file last."""
    complete = [p for p in folder.glob("checkpoint-*") if _is_json(p / "trainer_state.json")]
    newest = max(complete, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)
    return str(newest) if newest else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
