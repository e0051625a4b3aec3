"""The shipped prompts that benches ask."""

from collections.abc import Sequence

from solon.prompt_files import read_prompts
from solon.recipe import Source
from solon.records import Prompt

_MAX_WORDS = 200


def texts(*names: str) -> list[str]:
    """The texts of the shipped sets of these names, in their order."""
    return [p.text for name in names for p in read_prompts(Source(file=name), None, _MAX_WORDS)]


def rows(asked: Sequence[str]) -> list[Prompt]:
    """Texts as the rows that stages work on."""
    return [Prompt(id=text, origin="bench", text=text, kind="red_team", split="train") for text in asked]
