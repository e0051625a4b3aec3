"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on a frozen model, and their merging."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from solon.engines.hooks import blocks
from solon.saving import saving, writing
from solon.training.fused_lora import fuse
from solon.training_settings import Lora


def lora_config(settings: Lora, model: Any, depth: int | None = None) -> LoraConfig:
    """Adapters on all linear layers of the model's upper blocks, of as many as `settings.layers` says.

    With `depth` only so many of the first blocks count.

    No dropout: PPO's old and new log-probabilities must be of the same function.
    """
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        **_where(settings.layers, model, depth),
    )


def _where(share: float, model: Any, depth: int | None) -> dict[str, Any]:
    layers = blocks(model)
    read = len(layers) if depth is None else depth
    if share == 1 and read == len(layers):
        return {"target_modules": "all-linear"}
    adapted = math.ceil(read * share)
    linear = {n.rpartition(".")[2] for n, m in layers.named_modules() if isinstance(m, nn.Linear)}
    return {
        # Of a layer that has an adapter already, PEFT's own name for what it wraps.
        "target_modules": sorted(linear - {"base_layer"}),
        "layers_to_transform": list(range(read - adapted, read)),
    }


def add_adapter(model: Any, settings: Lora, seed: int, name: str, depth: int | None = None) -> PeftModel:
    """The model with a fresh adapter of this name, which starts as no change at all (B = 0).

    It is on the upper ones of all blocks, or of the first `depth` ones. `model` is a transformers model or
    one that has adapters already. The adapter computes in the model's own type: `training.optimiser` keeps
    float32 masters of what it trains.
    """
    torch.manual_seed(seed)
    if isinstance(model, PeftModel):
        config = lora_config(settings, model.get_base_model(), depth)
        model.add_adapter(name, config, autocast_adapter_dtype=False)
    else:
        config = lora_config(settings, model, depth)
        model = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
    fuse(model)
    return model


def load_adapter(model: Any, folder: Path, name: str) -> PeftModel:
    """The model with a saved adapter under a name of its own, in the model's type and frozen.

    Errors are PEFT's and safetensors': OSError, ValueError, KeyError, RuntimeError.
    """
    if not isinstance(model, PeftModel):
        model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=False)
    else:
        model.load_adapter(str(folder), name, autocast_adapter_dtype=False)
    fuse(model)
    return model


@contextmanager
def using(model: Any, adapter: str | None) -> Iterator[None]:
    """Only this adapter of the model is on, or none of them. Which parameters are trained stays as it was.

    PEFT makes the adapter that is on the only one with gradients; here policy and critic may be trained
    together, and the reference is read between.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    _switch(layers, [([adapter] if adapter else names, adapter is None) for names, _ in before])
    try:
        yield
    finally:
        _switch(layers, before)


def _switch(layers: Sequence[Any], to: Sequence[tuple[list[str], bool]]) -> None:
    for layer, (names, disabled) in zip(layers, to, strict=True):
        trained = [(p, p.requires_grad) for p in layer.parameters()]
        layer.set_adapter(names)
        layer.enable_adapters(not disabled)
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def train_only(model: nn.Module, *adapters: str) -> None:
    """Let the parameters of these adapters have gradients, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".{adapter}." in name for adapter in adapters))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_merged(
    model: Any,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype,
    adapter: str = "default",
    masters: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a standard Hugging Face folder (safetensors) with one adapter merged into the weights.

    Merged in float32 and rounded once: adding a small low-rank change to rounded weights would lose it.
    `masters` are trained parameters in float32, which the model may hold in a shorter type, by their names
    in the transformers model.
    The given model must not be used afterwards.

    Raises:
        RunError: the folder cannot be written.
    """
    # Where there is room: on a GPU that training just fits into, float32 weights would not
    merged = model.to("cpu").float()
    with torch.no_grad():
        inner = merged.get_base_model() if isinstance(merged, PeftModel) else merged
        for name, parameter in inner.named_parameters():
            if masters and name in masters:
                parameter.copy_(masters[name])
    if isinstance(merged, PeftModel):
        merged = merged.merge_and_unload(adapter_names=[adapter])
    merged = merged.to(dtype)
    with saving(folder) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter named `default` in PEFT's format, the same bytes in every run.

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
