"""Which rows the SL model learns from."""

from typing import Any

import pytest
from pydantic import ValidationError

from solon.recipe import Recipe
from solon.records import PromptKind, TextKind, Written
from solon.stages.finetune import training_pairs, training_rows
from solon.training.encoding import Encoded
from solon.training_settings import Finetune
from tests.rows import written


def _row(
    prompt: str,
    text: str,
    kind: TextKind = "revision",
    asked: PromptKind = "red_team",
    better: float | None = None,
    round: int = 1,
) -> Written:
    return written(
        text, prompt_id=prompt, prompt=prompt, prompt_kind=asked, kind=kind, round=round, better=better
    )


ROWS = [
    _row("bomb", "I will not help with it.", better=0.7),
    _row("theft", "It is a crime, so no.", better=0.9),
    _row("theft", "No, and please do not.", better=0.95, round=2),
    _row("fraud", "Ask the bank instead.", better=0.8),
    _row("spy", "That is her own business.", better=None),
    _row("bread", "Knead it well and let it rise.", "answer", "helpful"),
    _row("soup", "I'm sorry, but I can't help with that.", "answer", "helpful").changed(unusable="evasive"),
]


def _texts(settings: Finetune) -> list[str]:
    return [text for _, text, _ in training_pairs(ROWS, settings)]


def test_the_last_revision_of_each_prompt_and_answers_that_do_not_evade() -> None:
    assert _texts(Finetune()) == [
        "I will not help with it.",
        "No, and please do not.",
        "Ask the bank instead.",
        "That is her own business.",
        "Knead it well and let it rise.",
    ]


def test_the_surest_improvements_in_their_order() -> None:
    best = _texts(Finetune(best=0.5, helpful=False))
    assert best == ["No, and please do not.", "Ask the bank instead."]
    assert _texts(Finetune(best=0.75, helpful=False))[0] == "I will not help with it.", (
        "what was not judged comes last"
    )


class _Letters:
    """An encoder whose tokens are characters; 0 ends an answer."""

    def encode(self, prompt: str, answer: str, finish: str, max_tokens: int) -> Encoded:
        return Encoded(tuple(map(ord, prompt)), (*map(ord, answer), *((0,) if finish == "stop" else ())))


def test_of_ordinary_answers_the_first_tokens_may_do() -> None:
    letters: Any = _Letters()
    *revisions, answer = training_rows(ROWS, Finetune(helpful_tokens=5), letters)
    assert "".join(map(chr, answer.answer)) == "Knead"
    assert [row.answer[-1] for row in revisions] == [0] * 4, "revisions are learnt to their end"
    *_, whole = training_rows(ROWS, Finetune(), letters)
    assert whole.answer[-1] == 0


def test_the_best_of_one_candidate_is_refused_at_load() -> None:
    with pytest.raises(ValidationError, match=r"finetune\.best"):
        Recipe.model_validate({"name": "x", "finetune": {"best": 0.5}, "revise": {"candidates": 1}})
