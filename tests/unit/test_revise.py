"""What a model is asked for a critique and a revision, turn by turn."""

from pathlib import Path

import pytest

from solon.constitution import Constitution, Demonstrations, Principle, Revised
from solon.engines.base import Conversation, GenerateRequest
from solon.engines.scripted import ScriptedEngine
from solon.models import ModelSource
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt
from solon.stages.revise import Reviser

PRINCIPLE = Principle(id="kind", about="a", critique="Criticise it.", revision="Rewrite it.", question="q?")
EXAMPLE = Revised(principle="kind", prompt="EQ", answer="EA", critique="EC.", revision="ER")
MODEL = ModelSource("m", "", "m")


def _asked(**settings: object) -> list[Conversation]:
    """The conversations of one round: the answer's, the critique's if there is one, and the revision's."""
    seen: list[Conversation] = []

    def reply(request: GenerateRequest) -> str:
        seen.append(request.conversation)
        return f"Text {len(seen)}."

    constitution = Constitution(
        name="c",
        version="1",
        principles=(PRINCIPLE,),
        demonstrations=Demonstrations(revisions=(EXAMPLE,)),
    )
    recipe = Recipe.model_validate({"name": "r", "revise": {"rounds": 1, **settings}})
    inputs = Inputs(constitution, MODEL, {}, Path(), {})
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
