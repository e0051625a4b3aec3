"""The prompts of reinforcement, in the order in which steps ask them, and the answers sampled to them."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from solon.digest import seed_from
from solon.engines.base import GenerateRequest, completions
from solon.engines.local import LocalEngine
from solon.errors import RunError, UsageError
from solon.recipe import Recipe, Reinforce
from solon.records import Prompt
from solon.stages.common import asks, choose_fresh
from solon.text import is_degenerate
from solon.training.adapters import using
from solon.training.encoding import Encoder
from solon.training.ranks import Ranks
from solon.training.rollout import Episode
from solon.training.views import View


def draw_prompts(recipe: Recipe, prompts: Sequence[Prompt], count: int, name: str) -> list[Prompt]:
    """`count` training prompts; `name` seeds where in the order the red-team ones begin.

    Both kinds are spread evenly, in the set proportion: a step of few prompts has its share of each, where
    drawing the kinds would leave some steps without one.
    """
    share, seed = recipe.reinforce.helpful_share, recipe.seed
    red = choose_fresh(recipe, prompts, {"red_team": count})
    helpful = choose_fresh(recipe, prompts, {"helpful": count}) if share else []
    start = random.Random(seed_from(seed, name)).random()
    before = [math.floor(start + share * index) for index in range(count + 1)]  # Helpful prompts so far
    return [
        helpful[done % len(helpful)] if following > done else red[(index - done) % len(red)]
        for index, (done, following) in enumerate(pairwise(before))
    ]


def draw_watched(recipe: Recipe, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The guard's prompts: as many of each kind, whatever the mixture, so that each is looked at alone."""
    count = recipe.reinforce.guard.prompts
    helpful = count // 2 if recipe.reinforce.helpful_share else 0
    return list(choose_fresh(recipe, prompts, {"red_team": count - helpful, "helpful": helpful}))


class Sampler:
    """Answers of the policy as episodes. Which answer is sampled is decided by the prompt's seed alone."""

    def __init__(self, view: View, tokenizer: Any, settings: Reinforce, batch_tokens: int) -> None:
        self._view = view
        self._settings = settings
        self._encoder = Encoder(tokenizer)
        self._engine = LocalEngine(view.model, tokenizer, "rl", batch_tokens)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse, before the first step, prompts that do not fit.

        Raises:
            RunError: a prompt is longer than `reinforce.max_prompt_tokens`.
            UsageError: with its answer it is longer than the model's context.
        """
        most, room = self._settings.max_prompt_tokens, self._settings.sampling.max_tokens
        for prompt in {p.id: p for p in prompts}.values():
            length = len(self._encoder.prompt(prompt.text))
            if length > most:
                raise RunError(
                    f"a prompt has {length} tokens, more than reinforce.max_prompt_tokens={most}: "
                    f"“{prompt.text[:60]}…”. Raise the setting or shorten it."
                )
            if self._engine.context is not None and length + room > self._engine.context:
                raise UsageError(
                    f"“{prompt.text[:60]}…” has {length} tokens; with reinforce.sampling.max_tokens={room} "
                    f"it does not fit into the model's context of {self._engine.context}. Lower the setting."
                )

    def answer(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], reference: bool = False
    ) -> list[tuple[Episode, str]]:
        """Episodes and texts, in the order of the prompts; with `reference` those of the model before RL."""
        requests = [
            GenerateRequest(asks(prompt.text), self._settings.sampling, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        with using(self._view.model, None if reference else self._view.adapter):
            found = completions(self._engine, requests)
        return [
            (
                Episode(
                    self._encoder.prompt(prompt.text),
                    completion.token_ids,
                    completion.finish == "stop",
                    prompt.kind,
                    is_degenerate(completion.text) is not None,
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
        asked = self._ranks.mine(count // each)  # A prompt's answers stay together
        if not asked:
            raise RunError(
                f"{self._ranks.count} processes share {count} episodes, {each} to a prompt: some have none. "
                "Raise reinforce.episodes or start fewer processes."
            )
        mine = [prompt * each + i for prompt in asked for i in range(each)]
        prompts = [self._prompts[(step * count + i) // each] for i in mine]
        seeds = [seed_from(self._seed, "episode", step, i) for i in mine]
        found = self._sampler.answer(prompts, seeds)
        return [episode for episode, _ in found]
