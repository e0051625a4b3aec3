"""Answers of several models for blind reading: in random order, and who gave which in a file of its own.

A person who reads them rates each line by its `item`; joined with the key by `item`, the ratings are told
apart by model. Nothing in the readers' file, its order or its numbers tells the models.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from solon.chat import sources
from solon.digest import seed_from
from solon.engines.base import GenerateRequest, completions, user
from solon.engines.local import open_engine
from solon.errors import UsageError
from solon.models import ModelSource, pick_device, pick_dtype, resolve
from solon.pipeline import open_run
from solon.prompt_files import read_prompts
from solon.recipe import Source, load_recipe
from solon.settings import Sampling
from solon.store import write_atomically

_MAX_WORDS = 2000
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Answered:
    """One model's answer to the prompt of this number, from 0."""

    number: int
    prompt: str
    model: str
    answer: str


def named_models(given: Sequence[str]) -> dict[str, ModelSource]:
    """The models to ask, by name: each given as a run folder (base, SL and RL model), as NAME=MODEL or MODEL.

    MODEL is what `solon.models.resolve` takes. Of several run folders each model's name is headed by the
    folder's.

    Raises:
        UsageError: two models have the same name; else as `resolve`.
        RunError: a run folder has no trained model.
    """
    found: dict[str, ModelSource] = {}
    folders = [name for name in given if _is_run(name)]
    for name in given:
        for model, source in _sources(name, several=len(folders) > 1).items():
            if model in found:
                raise UsageError(
                    f"two models are named {model}. Name them: --models first=PATH --models second=PATH."
                )
            found[model] = source
    return found


def _is_run(name: str) -> bool:
    return (Path(name) / "recipe.yaml").is_file()


def _sources(given: str, several: bool) -> dict[str, ModelSource]:
    if _is_run(given):
        folder = open_run(Path(given))
        of_run = sources(folder, load_recipe(folder / "recipe.yaml")[0])
        return {f"{folder.name}/{model}" if several else model: s for model, s in of_run.items()}
    name, separator, model = given.partition("=")
    if separator and name and model:
        return {name: resolve(model)}
    source = resolve(given)
    return {source.name: source}


def ask(
    models: Mapping[str, ModelSource],
    prompts: Sequence[str],
    sampling: Sampling,
    device: str,
    dtype: str,
    seed: int = 0,
) -> list[Answered]:
    """Every model's answer to every prompt, one model in memory at a time; `seed` is of the sampling."""
    where = pick_device(device)
    requests = [
        GenerateRequest(user(text), sampling, seed_from(seed, "blind", i)) for i, text in enumerate(prompts)
    ]

    def texts(source: ModelSource) -> list[str]:
        """The engine is gone when the next one is opened."""
        engine = open_engine(source, where, pick_dtype(dtype, where), _BATCH_TOKENS)
        return [completion.text for completion in completions(engine, requests)]

    return [
        Answered(number, prompt, name, answer)
        for name, source in models.items()
        for number, (prompt, answer) in enumerate(zip(prompts, texts(source), strict=True))
    ]


def shuffled(answers: Sequence[Answered], seed: int) -> list[Answered]:
    """Prompts in random order, and the answers to each of them in a random order of their own.

    All answers to a prompt stand together, so that a reader reads it once.
    """
    rng = random.Random(seed)
    by_prompt: dict[int, list[Answered]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.number, []).append(answer)
    groups = list(by_prompt.values())
    rng.shuffle(groups)
    return [answer for group in groups for answer in rng.sample(group, len(group))]


def write(answers: Sequence[Answered], out: Path) -> Path:
    """Write the readers' file, and beside it the key, whose path is returned.

    A line of the readers' file has `item` (from 1), `prompt` and `answer`; a line of the key has `item`,
    `model` and `prompt_number` (the prompt's place in its file, from 1).
    """
    key = key_of(out)
    numbered = list(enumerate(answers, 1))
    _write_lines(out, [{"item": i, "prompt": a.prompt, "answer": a.answer} for i, a in numbered])
    _write_lines(key, [{"item": i, "model": a.model, "prompt_number": a.number + 1} for i, a in numbered])
    return key


def key_of(out: Path) -> Path:
    """Where the key of a readers' file lies."""
    return out.with_name(f"{out.stem}.key{out.suffix}")


def _write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_texts(file: Path, column: str) -> list[str]:
    """The prompts of a file in any format of `solon.prompt_files.read_prompts`, whose errors are its own."""
    return [prompt.text for prompt in read_prompts(Source(file=str(file), column=column), None, _MAX_WORDS)]
