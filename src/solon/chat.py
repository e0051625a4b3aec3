"""The same question to base, SL and RL model, side by side."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.engines.base import GenerateRequest, completions, user
from solon.errors import RunError
from solon.models import ModelSource, resolve
from solon.pipeline import open_run
from solon.plan import BY_NAME
from solon.recipe import Recipe, load_recipe
from solon.report.rundata import finished_stages
from solon.settings import Sampling
from solon.stages.common import engine_for
from solon.text import without_controls


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
        return {name: completions(engine, [request])[0].text for name, engine in self._engines.items()}

    def ask(self, prompt: str) -> None:
        """Print the answers, a column a model."""
        answers = self.answers(prompt)
        table = Table(box=box.ROUNDED, expand=True)
        for name in answers:
            table.add_column(name, ratio=1, overflow="fold")
        # A model's output is never read as markup, nor obeyed by the terminal.
        table.add_row(*(Text(without_controls(text)) for text in answers.values()))
        self._console.print(table)


def sources(folder: Path, recipe: Recipe) -> dict[str, ModelSource]:
    """The models of a run: base, and those of SL and RL that are finished and belong together."""
    found, finished = {"base": resolve(recipe.model)}, finished_stages(folder)
    for name, stage in (("sl", "finetune"), ("rl", "reinforce")):
        model = folder / BY_NAME[stage].folder / "model"
        if stage in finished and (model / "config.json").is_file():
            found[name] = resolve(str(model))
    if len(found) == 1:
        raise RunError(f"{folder}: no trained model yet. Go on with `solon run`.")
    return found
