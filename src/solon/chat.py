"""The same question to base, SL and RL model, side by side."""

from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel as Box
from rich.text import Text

from solon.engines.base import GenerateRequest, user
from solon.errors import RunError
from solon.models import ModelSource, resolve
from solon.pipeline import open_run
from solon.plan import BY_NAME
from solon.recipe import Recipe, Sampling, load_recipe
from solon.stages.common import engine_for

_MIN_COLUMN = 30


class Panel:
    """The models of a run, loaded once."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Load what the run has made so far. Raises RunError if the folder holds no run."""
        recipe, _ = load_recipe(open_run(folder) / "recipe.yaml")
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
        self._sampling = sampling
        self._engines = {name: engine_for(recipe, source) for name, source in sources(folder, recipe).items()}
        self._console = Console(highlight=False)

    def answers(self, prompt: str) -> dict[str, str]:
        """Each model's greedy answer, by the model's name."""
        request = GenerateRequest(user(prompt), self._sampling, 0)
        return {name: engine.generate([request])[0].text for name, engine in self._engines.items()}

    def ask(self, prompt: str) -> None:
        """Print the answers; side by side where the terminal is wide enough."""
        answers = self.answers(prompt)
        width = max(_MIN_COLUMN, self._console.width // len(answers) - 1)
        # Text, not str: a model's output is never read as markup.
        boxes = [Box(Text(text), title=name, width=width) for name, text in answers.items()]
        self._console.print(Columns(boxes, equal=False, expand=False))


def sources(folder: Path, recipe: Recipe) -> dict[str, ModelSource]:
    """The models of a run: base, and those of SL and RL that are finished."""
    found = {"base": resolve(recipe.model)}
    for name, stage in (("sl", "finetune"), ("rl", "reinforce")):
        model = folder / BY_NAME[stage].folder / "model"
        if (model / "config.json").is_file():
            found[name] = resolve(str(model))
    if len(found) == 1:
        raise RunError(f"{folder}: no trained model yet. Go on with `solon run`.")
    return found
