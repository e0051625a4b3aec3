"""The guard at work: the picked judge rates the policy's answers against the SL model's, now and then."""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from solon.digest import seed_from
from solon.errors import RunError
from solon.feedback.base import Question, preferences
from solon.feedback.calibration import Calibrated
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt
from solon.stages.common import picked_judge, role_engine
from solon.stages.prompting import Sampler
from solon.training.checkpoints import load, save
from solon.training.guard import Evidence, Rated, best, compare, from_dict
from solon.training.rollout import Episode, Reward, shaped


class Watch:
    """The guard's prompts, the checks so far, and the weights of the best one in `folder`."""

    def __init__(
        self,
        recipe: Recipe,
        inputs: Inputs,
        sampler: Sampler,
        reward: Reward,
        prompts: Sequence[Prompt],
        folder: Path,
    ) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._sampler = sampler
        self._reward = reward
        self._prompts = prompts
        self._folder = folder
        self._judge: Calibrated | None = None
        self._first: list[str] = []
        self._checks: list[Rated] = []
        self._evidence: list[Evidence] = []
        self._told_to_stop = False

    @property
    def evidence(self) -> list[Evidence]:
        return self._evidence

    @property
    def stopped(self) -> bool:
        return self._told_to_stop or any(found.over_optimised for found in self._evidence)

    def stop(self) -> None:
        """What another process has found."""
        self._told_to_stop = True

    @property
    def good(self) -> int:
        """After how many steps the judge's rating was best, and nothing was gamed."""
        return best(self._sound).step

    @property
    def _sound(self) -> list[Rated]:
        """The checks at which nothing was gamed. The first is the SL model's, and is always among them.

        A policy that refuses everything may have the best rating of all prompts together.
        """
        later = zip(self._checks[1:], self._evidence, strict=True)
        return [self._checks[0], *(check for check, found in later if not found.over_optimised)]

    def due(self, step: int) -> bool:
        """Whether to check after `step` steps; the last one always is."""
        settings = self._recipe.reinforce
        return bool(settings.guard.every) and (step % settings.guard.every == 0 or step == settings.steps)

    def begin(self, tensors: Mapping[str, Tensor]) -> None:
        """The check before the first step: the SL model against itself, whose answers all later ones meet."""
        answers = self._answers()
        self._first = [text for _, text in answers]
        self._checks = [self._rated(0, answers)]
        save(self._weights(0), dict(tensors), {"step": 0})

    def check(self, step: int, tensors: Mapping[str, Tensor]) -> Evidence:
        """Rate the policy after `step` steps; its `tensors` are kept if it is the best sound one."""
        now = self._rated(step, self._answers())
        found = self._add(now)
        if best(self._sound) is now:
            save(self._weights(step), dict(tensors), {"step": step})
        return found

    def tidy(self) -> None:
        """Remove the weights of checks that are the best no longer, once a checkpoint says which is."""
        if self._checks:
            for folder in self._folder.iterdir():
                if folder != self._weights(self.good):
                    shutil.rmtree(folder)

    def _weights(self, step: int) -> Path:
        return self._folder / str(step)

    def _add(self, now: Rated) -> Evidence:
        found = compare(self._checks, now, seed_from(self._recipe.seed, "guard", now.step))
        self._checks.append(now)
        self._evidence.append(found)
        return found

    def good_tensors(self) -> dict[str, Tensor]:
        """The parameters of the best check. Raises RunError if they are gone."""
        folder = self._weights(self.good)
        saved = load(folder)
        if saved is None:
            raise RunError(f"{folder}: the guard's best weights are gone. Remove the stage's folder.")
        return saved[0]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"checks": [asdict(check) for check in self._checks], "first": self._first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        checks = [from_dict(check) for check in state["checks"]]
        self._checks, self._evidence, self._first = checks[:1], [], list(state["first"])
        for check in checks[1:]:
            self._add(check)

    def _answers(self) -> list[tuple[Episode, str]]:
        """The policy's, as it is now."""
        seeds = [seed_from(self._recipe.seed, "guard answer", i) for i in range(len(self._prompts))]
        return self._sampler.answer(self._prompts, seeds)

    def _rated(self, step: int, answers: Sequence[tuple[Episode, str]]) -> Rated:
        episodes = [episode for episode, _ in answers]
        scores = shaped(self._reward(episodes), episodes, self._recipe.reinforce)
        ratings = self._ratings([text for _, text in answers])
        kinds = tuple(p.kind for p in self._prompts)
        return Rated(step, tuple(scores.tolist()), tuple(ratings), kinds)

    def _ratings(self, texts: Sequence[str]) -> list[float | None]:
        """P(better than the SL model's answer), without asking the judge where there is nothing to ask."""
        questions = [
            Question(
                self._inputs.constitution.draw(
                    random.Random(seed_from(self._recipe.seed, "guard", p.id)), kind=p.kind
                ),
                p.text,
                text,
                first,
                kind=p.kind,
            )
            for p, text, first in zip(self._prompts, texts, self._first, strict=True)
        ]
        return preferences(questions, lambda asked: self._opened().compare(asked))

    def _opened(self) -> Calibrated:
        """The judge, opened at the first check: its model lies in memory only where the guard is on."""
        if self._judge is None:
            engine = role_engine(self._recipe, self._inputs, "judge")
            self._judge = picked_judge(self._recipe, self._inputs, engine)
        return self._judge
