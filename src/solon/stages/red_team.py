"""Stage 1, red team: prompts to be answered harmfully, and ordinary ones to stay helpful on.

Prompts come from files; the model writes more from few-shot examples (Perez et al. 2022, sec. 3.1).
Near-duplicates are dropped over all sets together, so that no held-out prompt has a twin in training.
The split is a hash of the text alone: it stays the same when files grow or are reordered.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from solon.digest import digest, seed_from
from solon.engines.base import Conversation, GenerateRequest, Message, completions, used_by
from solon.errors import RunError
from solon.pipeline import Inputs
from solon.prompt_files import read_prompts
from solon.recipe import Recipe, Source
from solon.records import Prompt, PromptKind, Split
from solon.stages.common import engine_for, in_batches
from solon.store import StageResult, Workspace
from solon.templates import fill
from solon.text import drop_near_duplicates, is_degenerate, words

_WRITTEN_PER_BATCH = 32
_MIN_WORDS = 4


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    settings = recipe.red_team
    given = [
        *_from_files(recipe, inputs, settings.helpful, "helpful", settings.heldout),
        *_from_files(recipe, inputs, settings.sources, "red_team", settings.heldout),
        *_from_files(recipe, inputs, settings.heldout_helpful, "helpful", 1.0),
        *_from_files(recipe, inputs, settings.heldout_sources, "red_team", 1.0),
    ]
    # Judge and critic have read answers to the worked examples' prompts: nobody is tested on those.
    shown = sorted(inputs.constitution.demonstrations.prompts)
    heldout = _distinct([p for p in given if p.split == "heldout"], settings.max_similarity, shown)
    # Held-out prompts come first, so that of two twins the training one is dropped.
    kept = _distinct([*heldout, *(p for p in given if p.split == "train")], settings.max_similarity)
    examples = [p for p in kept if p.kind == "red_team" and p.split == "train"]
    new = _write(recipe, inputs, workspace, examples) if settings.written else []
    rows = _distinct([*kept, *new], settings.max_similarity)
    counts = {f"{kind}_{split}": _count(rows, kind, split) for kind, split in _GROUPS}
    dropped = len(given) + len(new) - len(rows)
    metrics = {
        **counts,
        "near_duplicates": dropped,
        "written": sum(p.origin.startswith("model:") for p in rows),
    }
    return StageResult(rows, metrics)


_GROUPS: tuple[tuple[PromptKind, Split], ...] = (
    ("red_team", "train"),
    ("red_team", "heldout"),
    ("helpful", "train"),
    ("helpful", "heldout"),
)


def _count(rows: Sequence[Prompt], kind: PromptKind, split: Split) -> int:
    return sum(p.kind == kind and p.split == split for p in rows)


def split_of(text: str, heldout: float) -> Split:
    """Train or held-out by a hash of the words: stable over files, order, case and spacing."""
    fraction = int(digest(" ".join(words(text))), 16) / 16**16
    return "heldout" if fraction < heldout else "train"


def _from_files(
    recipe: Recipe, inputs: Inputs, sources: Sequence[Source], kind: PromptKind, heldout: float
) -> list[Prompt]:
    return [
        Prompt(
            # The name alone: a row's id must not depend on where a checkout lies.
            origin=f"file:{Path(raw.file).name}",
            text=raw.text,
            kind=kind,
            category=raw.category,
            split=split_of(raw.text, heldout),
        )
        for source in sources
        for raw in read_prompts(source, inputs.beside, recipe.red_team.max_words)
    ]


def _distinct(prompts: Sequence[Prompt], max_similarity: float, known: Sequence[str] = ()) -> list[Prompt]:
    """The prompts without those too similar to an earlier one, or to one of the `known` texts."""
    kept = drop_near_duplicates([p.text for p in prompts], max_similarity, known)
    return [prompts[i] for i in kept]


def _write(recipe: Recipe, inputs: Inputs, workspace: Workspace, examples: Sequence[Prompt]) -> list[Prompt]:
    """Prompts written by the model, each after few-shot examples of one topic drawn for it."""
    if not examples:
        raise RunError("red_team.written needs red-team training prompts as examples; there is none.")
    engine = engine_for(recipe, inputs.base)
    plan = in_batches(range(recipe.red_team.written), _WRITTEN_PER_BATCH)

    def work(numbers: Sequence[int]) -> list[Prompt]:
        shown = [_examples(recipe, examples, number) for number in numbers]
        requests = [
            GenerateRequest(_few_shot(few), recipe.red_team.sampling, seed_from(recipe.seed, "write", number))
            for number, few in zip(numbers, shown, strict=True)
        ]
        found = completions(engine, requests)
        return [
            Prompt(
                parents=tuple(p.id for p in few),
                origin=f"model:{engine.name}",
                text=text,
                kind="red_team",
                category=few[0].category,
                split="train",
            )
            for few, completion in zip(shown, found, strict=True)
            if (text := _first_line(completion.text)) is not None
        ]

    return list(workspace.batches(plan, Prompt, work, "prompts", used_by(engine)))


def _examples(recipe: Recipe, examples: Sequence[Prompt], number: int) -> list[Prompt]:
    """Few-shot examples of one category, drawn for the `number`-th prompt."""
    rng = random.Random(seed_from(recipe.seed, "examples", number))
    category = rng.choice(sorted({p.category for p in examples}))
    alike = [p for p in examples if p.category == category]
    return rng.sample(alike, min(recipe.red_team.examples, len(alike)))


def _few_shot(examples: Sequence[Prompt]) -> Conversation:
    request = Message("user", fill("write_red_team", category=examples[0].category or "any"))
    turns = [turn for p in examples for turn in (request, Message("assistant", p.text))]
    return (*turns, request)


def _first_line(text: str) -> str | None:
    """The written prompt; None if what was written is no prompt."""
    line = text.strip().split("\n")[0].strip().strip('"').strip()
    return line if len(words(line)) >= _MIN_WORDS and is_degenerate(line) is None else None
