"""The prompts of reinforcement, in the order in which steps ask them, and the answers sampled to them."""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from solon.digest import seed_from
from solon.engines.base import GenerateRequest, completions
from solon.engines.local import LocalEngine, end_tokens
from solon.errors import RunError, UsageError
from solon.recipe import Recipe
from solon.records import Prompt, PromptKind, Written
from solon.refusal import is_refusal
from solon.stages.common import asks, choose_fresh
from solon.training.adapters import using
from solon.training.encoding import Encoder
from solon.training.ranks import Ranks
from solon.training.rollout import Episode, own_episodes
from solon.training.views import View
from solon.training_settings import Reinforce


def undecided(sampled: Iterable[Written]) -> dict[PromptKind, list[str]]:
    """Each kind's prompts, by their ids, to which some of these answers refuse and some do not.

    Of several answers that all refuse, or all do not, none shows whether refusing is right; where a group of
    answers is divided, its scores do. (Dynamic sampling of Yu et al. 2025, arXiv 2503.14476, sec. 3.2, leaves
    out groups of equal rewards after they were sampled; here what is known from the stage before is used.)
    """
    said = defaultdict[tuple[PromptKind, str], set[bool]](set)
    for answer in sampled:
        said[answer.prompt_kind, answer.prompt_id].add(is_refusal(answer.text))
    found: dict[PromptKind, list[str]] = {kind: [] for kind, _ in said}
    for (kind, prompt), both in said.items():
        if len(both) == 2:
            found[kind].append(prompt)
    return found


@dataclass(frozen=True)
class Mixture:
    """Of the prompts that are asked: the share of helpful ones, and each kind's ids that are preferred."""

    share: float
    wanted: Mapping[PromptKind, Sequence[str]] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """What a run's metrics say of it."""
        undecided = {kind: len(ids) for kind, ids in self.wanted.items()}
        return {"helpful_share": self.share, "undecided_prompts": undecided}


def draw_prompts(recipe: Recipe, prompts: Sequence[Prompt], mixture: Mixture, count: int) -> list[Prompt]:
    """`count` training prompts; where in the order the red-team ones begin is drawn by the recipe's seed.

    Both kinds are spread evenly, a share of helpful ones: a step of few prompts has its share of each, where
    drawing the kinds would leave some steps without one. So are, in each kind, those that are wanted, the
    undecided prompts; a kind without any has others in their place.
    """
    start = random.Random(seed_from(recipe.seed, "prompts")).random()

    def of(kind: PromptKind) -> Sequence[Prompt]:
        wanted = set(mixture.wanted.get(kind, ()))
        if not wanted:
            return choose_fresh(recipe, prompts, {kind: count})
        first: list[Prompt] = []
        others: list[Prompt] = []
        for prompt in choose_fresh(recipe, prompts, {kind: len(prompts)}):
            (first if prompt.id in wanted else others).append(prompt)
        return _spread(first, others or first, recipe.reinforce.undecided, count, 0.0)

    red = of("red_team")
    return _spread(of("helpful") if mixture.share else red, red, mixture.share, count, start)


def _spread(
    some: Sequence[Prompt], others: Sequence[Prompt], share: float, count: int, start: float
) -> list[Prompt]:
    """`count` prompts, evenly this share of them from `some`; each list begins anew when it is used up."""
    before = [math.floor(start + share * index) for index in range(count + 1)]  # Of `some`, so far
    return [
        some[done % len(some)] if following > done else others[(index - done) % len(others)]
        for index, (done, following) in enumerate(pairwise(before))
    ]


def draw_watched(recipe: Recipe, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The guard's prompts: as many of each kind, whatever the mixture, so that each is looked at alone."""
    count = recipe.reinforce.guard.prompts
    helpful = count // 2 if recipe.reinforce.helpful_share else 0
    return list(choose_fresh(recipe, prompts, {"red_team": count - helpful, "helpful": helpful}))


def check_lengths(
    prompts: Iterable[Prompt], encoder: Encoder, settings: Reinforce, context: int | None
) -> None:
    """Refuse prompts that do not fit.

    Raises:
        RunError: a prompt is longer than `reinforce.max_prompt_tokens`.
        UsageError: with its answer it is longer than the model's context.
    """
    most, room = settings.max_prompt_tokens, settings.sampling.max_tokens
    for prompt in {p.id: p for p in prompts}.values():
        length = len(encoder.prompt(prompt.text))
        if length > most:
            raise RunError(
                f"a prompt has {length} tokens, more than reinforce.max_prompt_tokens={most}: "
                f"“{prompt.text[:60]}…”. Raise the setting or shorten it."
            )
        if context is not None and length + room > context:
            raise UsageError(
                f"“{prompt.text[:60]}…” has {length} tokens; with reinforce.sampling.max_tokens={room} "
                f"it does not fit into the model's context of {context}. Lower the setting."
            )


class Sampler:
    """Answers of the policy as episodes. Which answer is sampled is decided by the prompt's seed alone."""

    def __init__(self, view: View, tokenizer: Any, settings: Reinforce, batch_tokens: int) -> None:
        self._view = view
        self._settings = settings
        self._encoder = Encoder(tokenizer)
        self._engine = LocalEngine(view.model, tokenizer, "rl", batch_tokens)
        self._ends = end_tokens(view.model, tokenizer)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse, before the first step, prompts that do not fit. Raises as `check_lengths`."""
        check_lengths(prompts, self._encoder, self._settings, self._engine.context)

    def answer(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[tuple[Episode, str]]:
        """Episodes and texts, in the order of the prompts."""
        requests = [
            GenerateRequest(asks(prompt.text), self._settings.sampling, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        with using(self._view.model, self._view.adapter):
            found = completions(self._engine, requests)
        return [
            (
                Episode.of(
                    self._encoder.prompt(prompt.text),
                    completion.token_ids,
                    # Not where the model began the next question of a plain transcript
                    completion.token_ids[-1] in self._ends,
                    prompt.kind,
                    completion.text,
                ),
                completion.text,
            )
            for prompt, completion in zip(prompts, found, strict=True)
        ]


class StepSampler:
    """This process's episodes of each step, without top-k or top-p."""

    def __init__(self, sampler: Sampler, prompts: Sequence[Prompt], recipe: Recipe, ranks: Ranks) -> None:
        self._sampler = sampler
        self._prompts = prompts
        self._settings = recipe.reinforce
        self._seed = recipe.seed
        self._ranks = ranks

    def __call__(self, step: int) -> list[Episode]:
        count, each = self._settings.episodes, self._settings.answers_each
        mine = own_episodes(self._settings, self._ranks)
        if not mine:
            raise RunError(
                f"{self._ranks.count} processes share {count} episodes, {each} to a prompt: some have none. "
                "Raise reinforce.episodes or start fewer processes."
            )
        prompts = [self._prompts[(step * count + i) // each] for i in mine]
        seeds = [seed_from(self._seed, "episode", step, i) for i in mine]
        found = self._sampler.answer(prompts, seeds)
        return [episode for episode, _ in found]
