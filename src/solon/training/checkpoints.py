"""The state of a training run on the disk: one safetensors file, replaced as a whole, restored bit by bit.

A kill at any moment leaves the old state or the new one. Nothing is pickled, so a state from elsewhere can
at worst be refused. The file holds tensors by name and `meta`, JSON data, in its header.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from solon.errors import RunError

STATE_FILE = "state.safetensors"
OPTIMISER_PREFIX = "optimiser/"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Replace the state in `folder` atomically, and return once it is on the disk.

    `meta` comes back as JSON gives it: tuples as lists, keys as strings.

    Raises:
        RunError: the file cannot be written; the earlier state, if any, is intact.
        TypeError: meta is not JSON data.
    """
    header = {"meta": json.dumps(meta)}
    path = folder / STATE_FILE
    temporary = path.with_name(f".{STATE_FILE}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_separate(tensors), temporary, metadata=header)
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(folder)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be written ({error}). Make room or mend the rights; run again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors, on the CPU, and the meta data last saved in `folder`; None if there are none.

    Raises:
        RunError: the file is damaged or not a training state.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["meta"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: not a readable training state ({error}). Remove {folder} and run again; "
            "this stage then trains from its beginning."
        ) from error
    return tensors, meta


def optimiser_tensors(optimizer: Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Copies of AdamW's moments and step counts, keyed `optimiser/<moment>/<parameter name>`.

    `names` are the names of the optimizer's parameters, in the optimizer's order. A parameter that has not
    been stepped has no entries. The settings of the parameter groups, the learning rate among them, are
    not state: they follow from the recipe and the step.

    Raises:
        ValueError: the names do not match the parameters, or the state is not AdamW's.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in _named(optimizer, names):
        state = optimizer.state.get(parameter)
        if not state:
            continue
        if set(state) != set(MOMENTS):
            raise ValueError(f"{name}: optimizer state {sorted(state)}, expected AdamW's {sorted(MOMENTS)}")
        found |= {_key(moment, name): state[moment].detach().clone() for moment in MOMENTS}
    return found


def restore_optimiser(optimizer: Optimizer, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Put back what `optimiser_tensors` took, exactly; other tensors of the mapping are ignored.

    Raises:
        RunError: the state is incomplete or belongs to other parameters; the optimizer is then unchanged.
        ValueError: the names do not match the optimizer's parameters.
    """
    left = {key for key in tensors if key.startswith(OPTIMISER_PREFIX)}
    states: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(_named(optimizer, names)):
        keys = {_key(moment, name) for moment in MOMENTS}
        if keys & left:
            states[index] = _state_of(name, parameter, tensors)
            left -= keys
    if left:
        raise RunError(_foreign(f"it holds {min(left)}, which this optimizer does not have"))
    # load_state_dict places each moment on its parameter's device, and the step where the variant wants it.
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_of(name: str, parameter: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    missing = [moment for moment in MOMENTS if _key(moment, name) not in tensors]
    if missing:
        raise RunError(_foreign(f"{name} has no {missing[0]}"))
    state = {moment: tensors[_key(moment, name)].clone() for moment in MOMENTS}
    for moment in ("exp_avg", "exp_avg_sq"):
        if state[moment].shape != parameter.shape:
            raise RunError(
                _foreign(f"{moment} of {name} is {[*state[moment].shape]}, not {[*parameter.shape]}")
            )
    return state


def _named(optimizer: Optimizer, names: Sequence[str]) -> list[tuple[str, Tensor]]:
    """(name, parameter) in the optimizer's order."""
    held: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(names) != len(held) or len(set(names)) != len(names):
        raise ValueError(f"{len(set(names))} different names for {len(held)} parameters of the optimizer")
    return list(zip(names, held, strict=True))


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, which safetensors refuses (tied weights, views)."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        storage = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return separate


def _to_disk(path: Path) -> None:
    """fsync a file's content, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(moment: str, name: str) -> str:
    return f"{OPTIMISER_PREFIX}{moment}/{name}"


def _foreign(what: str) -> str:
    return (
        f"the saved optimizer state does not fit: {what}. Remove the stage's checkpoint folder and run again."
    )
