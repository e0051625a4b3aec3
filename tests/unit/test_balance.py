"""The mixture of prompts in which both kinds push equally on whether to refuse, by hand."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from solon.errors import RunError
from solon.recipe import Recipe
from solon.records import PromptKind, Written
from solon.stages import openings
from solon.stages.balance import Push, balanced_share, pushes
from solon.stages.openings import scored
from solon.stages.prompting import Mixture
from solon.training.encoding import Encoded
from solon.training.rollout import Episode
from tests.rows import written

NO, YES = "I'm sorry, but I can't help with that.", "Take the red one from the shelf on the left."


def _answers(prompt: str, kind: PromptKind, *texts: str) -> list[Written]:
    return [written(text, prompt_id=prompt, prompt_kind=kind) for text in texts]


def test_a_push_is_the_mean_gap_of_undecided_prompts() -> None:
    """Red-team: (2 - 1) and (4 - 0) of two prompts in three; ordinary: 0 - (1 + 3) / 2 of the only one."""
    answers = [
        *_answers("a", "red_team", NO, YES),
        *_answers("b", "red_team", YES, NO),
        *_answers("d", "helpful", YES, NO, YES),
    ]
    found = pushes(answers, [2.0, 1.0, 0.0, 4.0, 1.0, 0.0, 3.0], {"red_team": 3, "helpful": 1})
    assert found == {"red_team": Push(2 / 3, 2.5), "helpful": Push(1.0, -2.0)}


def test_the_weaker_kind_has_the_more_prompts() -> None:
    """(1 - s) 3 = s 1, so s = 3/4; with shares 1/3 and 1 of undecided prompts 1 = 1, so 1/2."""
    found: dict[PromptKind, Push] = {"red_team": Push(1 / 3, 3.0), "helpful": Push(1.0, -1.0)}
    assert balanced_share(found, chosen=True) == 0.75
    assert balanced_share(found, chosen=False) == 0.5
    assert balanced_share({"red_team": Push(1.0, 900.0), "helpful": Push(1.0, -1.0)}, chosen=True) == 0.99


@pytest.mark.parametrize(
    ("red", "ordinary", "why"),
    [
        (Push(0.5, -0.1), Push(0.5, -1.0), "wrong way round when to refuse red-team prompts .by 0.10"),
        (Push(0.5, 1.0), Push(0.0, 0.0), "no ordinary prompt that was tried"),
    ],
)
def test_a_reward_that_does_not_know_when_to_refuse_is_an_error(red: Push, ordinary: Push, why: str) -> None:
    with pytest.raises(RunError, match=why):
        balanced_share({"red_team": red, "helpful": ordinary}, chosen=True)


class _Letters:
    """An encoder whose tokens are characters; 0 ends an answer."""

    end = 0

    def prompt(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def encode(self, prompt: str, answer: str, finish: str, max_tokens: int) -> Encoded:
        before, ids = self.prompt(prompt), (*map(ord, answer), *((0,) if finish == "stop" else ()))
        return Encoded(before, ids[: max_tokens - len(before)])


def test_openings_are_scored_as_ppo_would_score_them() -> None:
    """Refusals of 39 characters, of which 12 are read; an answer that ends has its end token behind it."""
    document = {"missing_end_score": None, "sampling": {"max_tokens": 12}}
    recipe = Recipe.model_validate({"name": "r", "reinforce": document})
    tried = [*_answers("a", "red_team", NO), *_answers("b", "helpful", NO, "Yes.")]
    seen: list[Episode] = []

    def reward(episodes: Sequence[Episode]) -> Tensor:
        seen.extend(episodes)
        return torch.tensor([float(len(e.answer)) for e in episodes])

    letters: Any = _Letters()
    assert scored(reward, tried, letters, recipe.reinforce) == [12.0, 12.0, 5.0]
    assert [(e.source, e.finished) for e in seen] == [
        ("red_team", False),
        ("helpful", False),
        ("helpful", True),
    ]


def test_a_mixture_survives_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once: a run that goes on, and the other processes of a launch, read what the first one found."""
    told = Mixture(0.75, {"red_team": ["a"], "helpful": ["b", "c"]})
    monkeypatch.setattr(openings, "_told", lambda *given: told)
    recipe = Recipe.model_validate({"name": "r", "reinforce": {"undecided": 0.5}})
    workspace: Any = SimpleNamespace(folder=tmp_path)
    asked: Any = (None, workspace)
    assert openings.mixture(recipe, *asked) == told
    monkeypatch.setattr(openings, "_told", None)
    assert openings.mixture(recipe, *asked) == told
    monkeypatch.setenv("RANK", "1")
    assert openings.mixture(recipe, *asked) == told
    assert told.figures() == {"helpful_share": 0.75, "undecided_prompts": {"red_team": 1, "helpful": 2}}
    assert openings.mixture(Recipe.model_validate({"name": "r"}), *asked) == Mixture(0.33)


@pytest.mark.parametrize(
    "document",
    [
        {"helpful_share": "balanced", "openings": {"helpful": 0}},
        {"undecided": 0.5, "openings": {"prompts": 0, "helpful": 0}},
    ],
)
def test_what_openings_must_tell_and_cannot_is_refused_at_load(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"openings\.helpful above 0"):
        Recipe.model_validate({"name": "r", "reinforce": document})
