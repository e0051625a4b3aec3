"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on a frozen model, and their merging."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from solon.recipe import Lora
from solon.saving import saving, writing


def lora_config(settings: Lora, task: str | None = "CAUSAL_LM") -> LoraConfig:
    """No dropout: PPO's old and new log-probabilities must be of the same function."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type=task,
    )


def add_adapter(model: Any, settings: Lora, seed: int, task: str | None = "CAUSAL_LM") -> PeftModel:
    """The model with fresh adapters in float32: they start as no change at all (B = 0)."""
    torch.manual_seed(seed)
    return get_peft_model(model, lora_config(settings, task))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def restore(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved values into the trainable parameters. Raises KeyError if one is missing."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def save_merged(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a standard Hugging Face folder (safetensors) with the adapters merged into the weights.

    Merged in float32 and rounded once: adding a small low-rank change to rounded weights would lose it.
    The given model must not be used afterwards.

    Raises:
        RunError: the folder cannot be written.
    """
    merged = model.float()
    if isinstance(merged, PeftModel):
        merged = merged.merge_and_unload()
    merged = merged.to(dtype)
    with saving(folder) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapters in PEFT's format, the same bytes in every run.

    PEFT writes the trunk's path, which is of this machine, a set in an order that differs between
    processes, and a card with neither; all three would make equal runs look different.

    Raises:
        RunError: the folder cannot be written.
    """
    with writing(folder):
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = None
        config["target_modules"] = sorted(config["target_modules"])
        path.write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
