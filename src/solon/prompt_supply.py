"""How many prompts the files of a recipe hold, beside how many it wants. Imports no torch: a dry run asks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from solon.prompt_files import read_prompts
from solon.recipe import Recipe, Source


def supply(recipe: Recipe, beside: Path) -> Iterator[str]:
    """The prompts of each kind in a line; another line for each number that they will not reach.

    Near-duplicates are not looked for, of those that the model is to write not all are prompts, and which are
    held out is decided by a hash: so "about".

    Raises:
        UsageError: a file is absent or unknown.
        ProblemsError: what is wrong in it.
    """
    settings = recipe.red_team
    share = settings.heldout
    for kind, files, kept, wanted in (
        ("red-team", settings.sources, settings.heldout_sources, _wanted(recipe, "prompts")),
        ("ordinary", settings.helpful, settings.heldout_helpful, _wanted(recipe, "helpful")),
    ):
        mixed, apart = _count(recipe, files, beside), _count(recipe, kept, beside)
        written = settings.written if kind == "red-team" else 0
        there = {"train": round(mixed * (1 - share)) + written, "heldout": apart + round(mixed * share)}
        yield f"{kind} prompts: about {there['train']} for training and {there['heldout']} held out"
        for key, split, count in wanted:
            if not there[split]:
                yield f"{key} asks for {count}, and there is none: the run would stop there"
            elif count > there[split]:
                yield f"{key} asks for {count}: there are about {there[split]}, and all are taken"


def _wanted(recipe: Recipe, name: str) -> list[tuple[str, str, int]]:
    """(key, split, count) of every setting that asks for so many prompts of a kind."""
    settings = recipe.reinforce
    opened = settings.undecided or settings.helpful_share == "balanced"
    asked = {
        "revise": ("train", recipe.revise),
        "sample": ("train", recipe.sample),
        **({"reinforce.openings": ("train", settings.openings)} if opened else {}),
        "evaluate": ("heldout", recipe.evaluate),
    }
    found = [(f"{group}.{name}", split, getattr(of, name)) for group, (split, of) in asked.items()]
    return [one for one in found if one[2]]


def _count(recipe: Recipe, sources: Sequence[Source], beside: Path) -> int:
    return sum(len(read_prompts(source, beside, recipe.red_team.max_words)) for source in sources)
