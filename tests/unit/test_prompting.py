"""Which prompts reinforcement asks, in which order, and which ones the guard watches."""

from collections.abc import Collection

from solon.recipe import Recipe
from solon.records import Prompt, PromptKind
from solon.stages.prompting import Mixture, draw_prompts, draw_watched, undecided
from tests.rows import written

KINDS: tuple[PromptKind, ...] = ("red_team", "helpful")
PROMPTS = [
    Prompt(origin="o", text=f"{kind} {i}", kind=kind, split="train") for kind in KINDS for i in range(20)
]


def test_as_many_prompts_of_each_kind_are_watched_whatever_the_mixture() -> None:
    for share, expected in ((0.9, [8, 8]), (0.0, [16, 0])):
        document = {"helpful_share": share, "guard": {"prompts": 16}}
        recipe = Recipe.model_validate({"name": "r", "reinforce": document})
        watched = draw_watched(recipe, PROMPTS)
        assert [sum(p.kind == kind for p in watched) for kind in KINDS] == expected
        assert watched == draw_watched(recipe, PROMPTS)


def test_every_step_has_its_share_of_each_kind() -> None:
    for share, least in ((0.75, 4), (0.8, 4), (0.0, 0)):
        recipe = Recipe.model_validate({"name": "r"})
        drawn = draw_prompts(recipe, PROMPTS, Mixture(share), 30)
        helpful = [[p.kind for p in drawn[i : i + 6]].count("helpful") for i in range(0, 30, 6)]
        assert set(helpful) <= {least, least + 1}, "6 x 0.75 = 4.5"
        assert abs(sum(helpful) - 30 * share) < 1
        for kind in KINDS:
            of_kind = [p.text for p in drawn if p.kind == kind]
            assert len(set(of_kind)) == min(len(of_kind), 20), "no prompt comes twice before all have come"


def test_undecided_prompts_have_answers_that_refuse_and_answers_that_do_not() -> None:
    no, yes = "I'm sorry, but I can't help with that.", "Take the red one from the shelf on the left."
    said = {"both": (no, yes, no), "never": (yes, yes), "always": (no, no), "once": (no,)}
    rows = [written(text, prompt_id=prompt) for prompt, texts in said.items() for text in texts]
    assert undecided(rows) == {"red_team": ["both"]}


def test_undecided_prompts_have_their_share_of_each_kind_and_come_again_when_used_up() -> None:
    wanted = {p.id for p in PROMPTS if p.text in ("red_team 1", "red_team 2", "helpful 3")}

    def drawn(share: float, wanted: Collection[str]) -> list[Prompt]:
        recipe = Recipe.model_validate({"name": "r", "reinforce": {"undecided": share}})
        of_kind = {kind: [p.id for p in PROMPTS if p.id in wanted and p.kind == kind] for kind in KINDS}
        return draw_prompts(recipe, PROMPTS, Mixture(0.5, of_kind), 40)

    found = drawn(0.75, wanted)
    for kind in KINDS:
        of_kind = [p for p in found if p.kind == kind]
        assert len(of_kind) == 20
        assert [p.id in wanted for p in of_kind].count(True) == 15
        assert len({p.id for p in of_kind if p.id not in wanted}) == 5
    assert {p.id for p in drawn(1.0, wanted)} == wanted
    assert len(set(drawn(1.0, set()))) > 20, "without any, the others"
