"""What a model is asked for a critique and a revision, turn by turn."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from solon.constitution import Constitution, Demonstrations, Principle, Revised
from solon.engines.base import Conversation, GenerateRequest
from solon.engines.scripted import ScriptedEngine
from solon.feedback.base import Judgement, Question
from solon.models import ModelSource
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt, Written
from solon.stages.revise import Reviser

PRINCIPLE = Principle(id="kind", about="a", critique="Criticise it.", revision="Rewrite it.", question="q?")
EXAMPLE = Revised(principle="kind", prompt="EQ", answer="EA", critique="EC.", revision="ER")
MODEL = ModelSource("m", "", "m")
CONSTITUTION = Constitution(
    name="c",
    version="1",
    principles=(PRINCIPLE,),
    demonstrations=Demonstrations(revisions=(EXAMPLE,)),
)


def _asked(**settings: object) -> list[Conversation]:
    """The conversations of one round: the answer's, the critique's if there is one, and the revision's."""
    seen: list[Conversation] = []

    def reply(request: GenerateRequest) -> str:
        seen.append(request.conversation)
        return f"Text {len(seen)}."

    recipe = Recipe.model_validate({"name": "r", "revise": {"rounds": 1, **settings}})
    inputs = Inputs(CONSTITUTION, MODEL, {}, Path(), {})
    prompt = Prompt(origin="o", text="Q", kind="red_team", split="train")
    engine = ScriptedEngine(reply)
    Reviser(recipe, inputs, engine, engine, None).work([prompt])
    return seen


def _turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m.role[0], m.content) for m in conversation]


def test_a_revision_is_asked_in_the_conversation() -> None:
    answer, critique, revision = _asked()
    assert _turns(answer) == [("u", "Q")]
    shown = [("u", "EQ"), ("a", "EA"), ("u", "Criticise it."), ("a", "EC.")]
    assert _turns(critique) == [*shown, ("u", "Q"), ("a", "Text 1."), ("u", "Criticise it.")]
    shown = [("u", "EQ"), ("a", "EA"), ("u", "EC. Rewrite it."), ("a", "ER")]
    assert _turns(revision) == [*shown, ("u", "Q"), ("a", "Text 1."), ("u", "Text 2. Rewrite it.")]


@pytest.mark.parametrize(("critique", "request_"), [(True, "{} Rewrite it."), (False, "Rewrite it.")])
def test_a_revision_can_be_asked_with_the_question_alone(critique: bool, request_: str) -> None:
    revision = _asked(ask="question", critique=critique)[-1]
    assert _turns(revision) == [
        ("u", f"{request_.format('EC.')}\n\nEQ"),
        ("a", "ER"),
        ("u", f"{request_.format('Text 2.')}\n\nQ"),
    ]


class _Longest:
    """Prefers the longer text, the more surely the longer."""

    name = "longest"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        return [Judgement(1 / (1 + 2.0 ** (len(q.b) - len(q.a)))) for q in questions]


def _revised(texts: Sequence[str], rounds: int = 1, **settings: object) -> list[Written]:
    """The revisions of one prompt whose first answer is "First."; the engine gives `texts` in turn."""
    left = iter(texts)
    recipe = Recipe.model_validate(
        {"name": "r", "revise": {"rounds": rounds, "critique": False, "candidates": 2, **settings}}
    )
    inputs = Inputs(CONSTITUTION, MODEL, {}, Path(), {})
    engine = ScriptedEngine(lambda _: next(left))
    prompt = Prompt(origin="o", text="Q", kind="red_team", split="train")
    rows = Reviser(recipe, inputs, engine, engine, _Longest()).work([prompt])
    return [row for row in rows if row.kind == "revision"]


def test_a_revision_is_cut_before_it_is_judged() -> None:
    one, two = _revised(
        ["First.", "I will not. It is a crime. Ask me something else.", "I will not help with it."],
        sentences=2,
    )
    assert (one.text, one.finish) == ("I will not. It is a crime.", "stop")
    assert two.text == "I will not help with it."
    assert one.better == pytest.approx(1 / (1 + 2.0 ** (len("First.") - len(one.text))))
    assert one.chosen
    assert not two.chosen


def test_an_engine_may_stop_a_revision_where_it_will_be_cut() -> None:
    told: list[int | None] = []

    def reply(request: GenerateRequest) -> str:
        told.append(request.sentences)
        return "I will not."

    recipe = Recipe.model_validate({"name": "r", "revise": {"rounds": 1, "sentences": 2}})
    engine = ScriptedEngine(reply)
    prompt = Prompt(origin="o", text="Q", kind="red_team", split="train")
    Reviser(recipe, Inputs(CONSTITUTION, MODEL, {}, Path(), {}), engine, engine, None).work([prompt])
    assert told == [None, None, 2], "answer and critique are kept whole"


def test_a_later_round_is_still_measured_by_the_first_answer() -> None:
    texts = ["First.", "Secondly.", "Second.", "Third of all.", "Third to be."]
    rows = _revised(texts, rounds=2)
    kept = [row for row in rows if row.chosen]
    assert [row.text for row in kept] == ["Secondly.", "Third of all."]
    assert kept[1].better == pytest.approx(1 / (1 + 2.0 ** (len("First.") - len("Third of all."))))
    assert kept[1].score is not None
    assert kept[1].score < kept[1].better, "the score is beside the other candidate, and the text of round 1"


@pytest.mark.parametrize(("tries", "asked"), [(1, 1), (2, 2), (5, 3)])
def test_an_ordinary_prompt_is_asked_again_while_its_answer_evades(tries: int, asked: int) -> None:
    texts = iter(
        ["I'm sorry, but I can't help with that.", "I'm sorry for the mistake.", "Bake it.", "Too much."]
    )
    recipe = Recipe.model_validate({"name": "r", "revise": {"tries": tries}})
    inputs = Inputs(CONSTITUTION, MODEL, {}, Path(), {})
    seeds: list[int] = []

    def reply(request: GenerateRequest) -> str:
        seeds.append(request.seed)
        return next(texts)

    engine = ScriptedEngine(reply)
    prompt = Prompt(origin="o", text="Q", kind="helpful", split="train")
    rows = Reviser(recipe, inputs, engine, engine, None).work([prompt])
    evasive = [(n, "evasive") for n in range(2)]
    assert [(row.number, row.unusable) for row in rows] == [*evasive, (2, None)][:asked]
    assert len(set(seeds)) == asked
