"""Answers for blind reading: nothing that a reader sees tells the models, and the key tells all of them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.blind import Answered, ask, named_models, shuffled, write
from solon.errors import UsageError
from solon.models import resolve
from solon.settings import Sampling

MODELS = ("base", "sl", "rl")


def _answers(prompts: int) -> list[Answered]:
    return [Answered(n, f"prompt {n}", m, f"{m} to {n}") for m in MODELS for n in range(prompts)]


@given(st.integers(1, 20), st.integers(0, 1000))
def test_every_answer_stands_once_and_a_prompts_answers_together(prompts: int, seed: int) -> None:
    order = shuffled(_answers(prompts), seed)
    assert sorted(order, key=lambda a: (MODELS.index(a.model), a.number)) == _answers(prompts)
    groups = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert all(len({answer.number for answer in group}) == 1 for group in groups)


def test_neither_prompts_nor_models_keep_their_order() -> None:
    order = shuffled(_answers(60), 0)
    firsts = [answer.model for answer in order[::3]]
    assert min(firsts.count(model) for model in MODELS) > 10, "each model comes first now and then"
    assert [answer.number for answer in order[::3]] != list(range(60))
    assert order != shuffled(_answers(60), 1)


def test_the_readers_file_names_no_model_and_the_key_names_each(tmp_path: Path) -> None:
    order = [Answered(1, "why?", "sl", "so <b>\n"), Answered(0, "whö?", "base", "me")]
    key = write(order, tmp_path / "new" / "read.jsonl")
    lines = (tmp_path / "new" / "read.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"item": 1, "prompt": "why?", "answer": "so <b>\n"},
        {"item": 2, "prompt": "whö?", "answer": "me"},
    ]
    assert key == tmp_path / "new" / "read.key.jsonl"
    assert [json.loads(line) for line in key.read_text(encoding="utf-8").splitlines()] == [
        {"item": 1, "model": "sl", "prompt_number": 2},
        {"item": 2, "model": "base", "prompt_number": 1},
    ]


def test_models_are_named_by_hand_or_by_themselves(tiny_model_folder: Path) -> None:
    found = named_models([f"first={tiny_model_folder}", str(tiny_model_folder)])
    assert list(found) == ["first", resolve(str(tiny_model_folder)).name]
    with pytest.raises(UsageError, match="two models are named a"):
        named_models([f"a={tiny_model_folder}", f"a={tiny_model_folder}"])


def test_greedy_answers_of_the_same_model_are_the_same(tiny_model_folder: Path) -> None:
    models = named_models([f"a={tiny_model_folder}", f"b={tiny_model_folder}"])
    found = ask(models, ["go", "stay"], Sampling(max_tokens=4, temperature=0.0), "cpu", "float32")
    assert [(a.model, a.number, a.prompt) for a in found] == [
        ("a", 0, "go"),
        ("a", 1, "stay"),
        ("b", 0, "go"),
        ("b", 1, "stay"),
    ]
    assert [a.answer for a in found[:2]] == [a.answer for a in found[2:]]
    assert found[0].answer


def test_answers_are_sampled_by_the_seed(tiny_model_folder: Path) -> None:
    models, hot = named_models([f"a={tiny_model_folder}"]), Sampling(max_tokens=8, temperature=2.0)
    said = [ask(models, ["go"], hot, "cpu", "float32", seed)[0].answer for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
