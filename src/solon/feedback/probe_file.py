"""A fitted probe on the disk: stages behind the preflight judge by it, and read no comparison again."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

from solon.feedback.linear_probe import Fitted, Groups, ProbeSetting
from solon.feedback.readout import Readout
from solon.saving import saving

PROBE = "probe"  # A folder in the stage's own
_FILE = "probe.safetensors"
_ARRAYS = ("overall_D", "strays_GD", "mean_D", "scale_D")


def save_probe(fitted: Fitted, folder: Path) -> None:
    """Write what a probe has learned: numbers as safetensors, the rest as their metadata.

    Raises RunError if there is no room for it.
    """
    about = {"setting": asdict(fitted.setting), "principles": list(fitted.groups.principles)}
    arrays = {name: getattr(fitted.readout, name) for name in _ARRAYS}
    with saving(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file(arrays, temporary / _FILE, {"probe": json.dumps(about)})


def load_probe(folder: Path) -> Fitted:
    """What `save_probe` wrote, number by number.

    Raises FileNotFoundError if there is none.
    """
    with safe_open(folder / _FILE, "np") as file:
        about = json.loads(file.metadata()["probe"])
        readout = Readout(**{name: file.get_tensor(name) for name in _ARRAYS})
    return Fitted(ProbeSetting(**about["setting"]), Groups(tuple(about["principles"])), readout)
