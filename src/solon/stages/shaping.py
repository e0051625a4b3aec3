"""The reward of a recipe: its reward model, as the recipe's own function shapes it."""

from solon.pipeline import Inputs
from solon.plan import shaping_path
from solon.recipe import Recipe
from solon.training.reward_model import RewardModel
from solon.training.rollout import Reward
from solon.training.shaping import load_shaping, shape


def open_reward(recipe: Recipe, inputs: Inputs, model: RewardModel) -> Reward:
    """The reward model's normalised score, shaped where the recipe names a function.

    Raises:
        UsageError: the function cannot be had.
    """
    found = shaping_path(recipe, inputs.beside)
    return shape(model.score, load_shaping(*found)) if found else model.score
