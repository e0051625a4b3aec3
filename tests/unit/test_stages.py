"""Pieces of the stages that are worth a look of their own."""

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.constitution import load_constitution
from solon.engines.local import LocalEngine
from solon.errors import UsageError
from solon.models import ModelSource
from solon.pipeline import Inputs
from solon.plan import BY_NAME
from solon.recipe import Recipe
from solon.records import Written
from solon.stages.common import role_engine
from solon.stages.evaluate import describe, win
from solon.stages.finetune import training_pairs
from solon.stages.red_team import split_of
from solon.stages.reward import heldout_prompts, plan_steps
from solon.training_settings import Finetune
from tests.rows import written


def _row(text: str, **changes: object) -> Written:
    return written(text, **{"prompt": "How?", "kind": "revision", "round": 1, **changes})


@given(st.lists(st.text(max_size=3), max_size=40), st.floats(0.01, 0.99))
def test_the_share_of_prompts_that_test_the_reward_model_is_kept(ids: list[str], share: float) -> None:
    held = heldout_prompts(ids, share)
    assert held <= set(ids)
    count = len(set(ids))
    assert count < 2 or 1 <= len(held) < count, "one at the least on either side"
    assert len(held) == min(max(1, round(share * count)), max(1, count - 1)) if ids else not held
    assert held == heldout_prompts([*reversed(ids), *ids], share)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 99))
def test_reward_plan_covers_every_pair_once_an_epoch(prompts: list[str], size: int, seed: int) -> None:
    plan = plan_steps(prompts, size, 2, seed)
    flat = [i for step in plan for i in step]
    assert sorted(flat) == sorted([*range(len(prompts)), *range(len(prompts))])
    assert all(len(step) <= size for step in plan)
    first = [prompts[i] for i in flat[: len(prompts)]]
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert changes == len(set(prompts)) - 1, "a prompt's pairs stand together"


@given(st.text(min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_split_ignores_case_and_spacing(text: str, share: float) -> None:
    assert split_of(text, share) == split_of(f"  {text} ", share)
    if text.isascii():
        assert split_of(text, share) == split_of(text.upper(), share)


def test_a_model_that_is_open_already_is_not_opened_again(tiny_engine: LocalEngine) -> None:
    source = ModelSource("other", "no/such/folder", "its weights")
    base = ModelSource("base", "no/such/folder", "other weights")
    inputs = Inputs(load_constitution("pharmacy"), base, {"critic": source, "judge": source}, Path(), {})
    recipe = Recipe.model_validate({"name": "r", "judge": {"model": "other"}})
    assert role_engine(recipe, inputs, "judge", {"its weights": tiny_engine}) is tiny_engine
    with pytest.raises(UsageError, match="no/such/folder"):
        role_engine(recipe, inputs, "judge", {"other weights": tiny_engine})


def test_split_keeps_its_share() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["red", "blue", "green", "sun", "moon", "tree"], k=8)) for _ in range(3000)]
    held = sum(split_of(t, 0.3) == "heldout" for t in texts)
    assert abs(held / 3000 - 0.3) < 0.04


def test_final_takes_the_last_usable_round() -> None:
    rows = [
        _row("First good answer here."),
        _row("Second, about the response.", round=2, unusable="talks-about-the-response"),
        _row("Not chosen at all.", chosen=False),
    ]
    assert list(training_pairs(rows, Finetune())) == [("How?", "First good answer here.", "stop")]


def test_all_takes_every_usable_round() -> None:
    rows = [_row("First good answer here."), _row("Second good answer here.", round=2)]
    texts = [text for _, text, _ in training_pairs(rows, Finetune(use="all"))]
    assert texts == ["First good answer here.", "Second good answer here."]


def test_helpful_answers_are_mixed_in_unless_told_not_to() -> None:
    rows = [
        _row("First good answer here."),
        _row("Boil it for ten minutes.", kind="answer", round=0, prompt_kind="helpful", prompt_id="h"),
        _row("I would steal it.", kind="answer", round=0),
    ]
    assert len(list(training_pairs(rows, Finetune()))) == 2
    assert len(list(training_pairs(rows, Finetune(helpful=False)))) == 1


def test_cut_texts_end_at_a_sentence_or_stay_open() -> None:
    rows = [
        _row("One sentence is whole. The next is cu", finish="length", prompt_id="a"),
        _row("no sentence ends in this text", finish="length", prompt_id="b"),
    ]
    pairs = list(training_pairs(rows, Finetune()))
    assert pairs[0][1:] == ("One sentence is whole.", "stop")
    assert pairs[1][1:] == ("no sentence ends in this text", "length")
    untouched = list(training_pairs(rows, Finetune(trim=False)))
    assert untouched[0][1:] == ("One sentence is whole. The next is cu", "length")


@pytest.mark.parametrize(("p_a", "expected"), [(0.51, 1.0), (0.49, 0.0), (0.5, 0.5)])
def test_win(p_a: float, expected: float) -> None:
    assert win(p_a) == expected


def test_describe_by_hand() -> None:
    answers = [
        _row("I can't help with that request.", kind="answer"),
        _row("Take the key and open the door.", kind="answer"),
        _row("", kind="answer"),
        _row("Boil it for ten minutes.", kind="answer", prompt_kind="helpful"),
    ]
    figures = describe(answers)
    assert figures["refusal_rate"] == pytest.approx(1 / 3)
    assert figures["over_refusal_rate"] == 0.0
    assert figures["degenerate_rate"] == pytest.approx(1 / 4)
    assert figures["degenerate_red_team_rate"] == pytest.approx(1 / 3)
    assert figures["degenerate_helpful_rate"] == 0.0
    assert figures["mean_words"] == pytest.approx((6 + 7 + 0 + 5) / 4)


def test_the_plan_counts_every_trained_model() -> None:
    recipe = Recipe.model_validate({"name": "r", "reinforce": {"algorithm": ["ppo", "rloo", "dpo"]}})
    assert BY_NAME["evaluate"].planned(recipe).startswith("5 models x ")
