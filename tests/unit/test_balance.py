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
from solon.stages.balance import Push, balanced_share, mixture, pushes
from solon.stages.prompting import Mixture
from solon.stages.sample import OPENINGS
from solon.store import write_rows
from solon.training.encoding import Encoded
from solon.training.ranks import Ranks
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
        (Push(0.5, 1.0), Push(0.0, 0.0), "no sampled ordinary prompt has both"),
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


def test_the_share_of_a_run_is_told_from_the_first_tokens_of_its_sampled_answers() -> None:
    """Refusals of 39 characters, of which 12 are read: +3 on red-team prompts, -1 on ordinary ones.

    Prompts whose answers agree say nothing of it, and the reward model is not asked about them.
    """
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "reinforce": {
                **{"helpful_share": "balanced", "undecided": 0.5, "missing_end_score": None},
                "sampling": {"max_tokens": 12},
            },
        }
    )
    decided = _answers("c", "red_team", NO, NO)
    answers = [*_answers("a", "red_team", NO, YES), *decided, *_answers("b", "helpful", NO, "Yes.")]
    seen: list[Episode] = []

    def reward(episodes: Sequence[Episode]) -> Tensor:
        seen.extend(episodes)
        refused = [chr(e.answer[0]) == "I" for e in episodes]
        pairs = zip(refused, (e.source for e in episodes), strict=True)
        return torch.tensor([(3.0 if kind == "red_team" else -1.0) * no for no, kind in pairs])

    inputs = SimpleNamespace(rows=lambda stage, row: answers)
    ranks = Ranks(0, 1, torch.device("cpu"))
    asked: Any = (inputs, reward, _Letters(), ranks)
    assert mixture(recipe, *asked) == Mixture(0.75, frozenset({"a", "b"}))
    assert [len(e.answer) for e in seen] == [12, 12, 12, 5]
    assert [e.finished for e in seen] == [False, False, False, True]
    fixed = recipe.model_copy(
        update={"reinforce": recipe.reinforce.model_copy(update={"helpful_share": 0.4})}
    )
    assert mixture(fixed, *asked) == Mixture(0.4, frozenset({"a", "b"}))


def test_openings_tell_of_more_prompts_which_are_undecided(tmp_path: Path) -> None:
    document = {"name": "r", "reinforce": {"undecided": 0.5}, "sample": {"openings": {"helpful": 9}}}
    answers = [*_answers("a", "red_team", NO, YES), *_answers("b", "helpful", YES, YES)]
    openings = [*_answers("b", "helpful", NO), *_answers("c", "helpful", NO, YES)]
    write_rows(tmp_path / OPENINGS, Written, openings)
    inputs: Any = SimpleNamespace(rows=lambda stage, row: answers, folders={"sample": tmp_path})
    asked: Any = (None, None, Ranks(0, 1, torch.device("cpu")))
    found = mixture(Recipe.model_validate(document), inputs, *asked)
    assert found == Mixture(0.33, frozenset("abc"))
    without = Recipe.model_validate(document | {"sample": {}})
    assert mixture(without, inputs, *asked).wanted == {"a"}


def test_a_balance_without_ordinary_answers_is_refused_at_load() -> None:
    document = {"name": "r", "sample": {"helpful": 0}, "reinforce": {"helpful_share": "balanced"}}
    with pytest.raises(ValidationError, match=r"sample\.helpful"):
        Recipe.model_validate(document)
