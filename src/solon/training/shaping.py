"""Rewards that a user writes: a function in a file, named by the recipe as `file.py:name`.

    def brief(episodes, scores):
        "The reward model's scores less a hundredth for each token of the answer."
        return scores - 0.01 * torch.tensor([len(e.answer) for e in episodes])

The file is the user's own, like the recipe that names it; nothing is ever fetched.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from solon.errors import RunError, UsageError
from solon.training.rollout import Episode, Reward

Shaping = Callable[[Sequence[Episode], Tensor], Tensor]


def load_shaping(path: Path, name: str) -> Shaping:
    """The function `name` of a Python file.

    Raises:
        UsageError: the file cannot be run or has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"solon_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"reinforce.reward: {path} is no Python file. Name one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Where dataclasses look for the names in their annotations
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # Whatever the user's file raises is told with its name.
        raise UsageError(f"reinforce.reward: {path} fails ({type(error).__name__}: {error}).") from error
    shaping: Shaping | None = getattr(module, name, None)
    if not callable(shaping):
        raise UsageError(f"reinforce.reward: {path} has no function {name}.")
    return shaping


def shape(reward: Reward, shaping: Shaping) -> Reward:
    """`reward` as `shaping` changes it. It raises RunError where that gives no tensor."""

    def shaped(episodes: Sequence[Episode]) -> Tensor:
        found: object = shaping(episodes, reward(episodes))
        if not isinstance(found, Tensor):
            raise RunError(
                f"reinforce.reward: the function gives a {type(found).__name__}. Let it return a tensor "
                "with a score for each episode."
            )
        return found

    return shaped
