"""Recipes: shipped ones load, faults are named with line and fix, settings are checked together."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from solon import shipped
from solon.errors import ProblemsError, UsageError
from solon.plan import BY_NAME
from solon.prompt_supply import supply
from solon.recipe import Recipe, dump, load_recipe


@pytest.mark.parametrize("name", shipped.names("recipes", ".yaml"))
def test_shipped_recipes_load_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe, _ = load_recipe(name)
    path = tmp_path / "again.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path)[0] == recipe


def test_overrides() -> None:
    recipe, _ = load_recipe("demo", ("revise.rounds=5", "reinforce.sampling.temperature=0.5", "seed=11"))
    assert (recipe.revise.rounds, recipe.reinforce.sampling.temperature, recipe.seed) == (5, 0.5, 11)
    assert load_recipe("demo", (f"seed={2**32 - 1}",))[0].seed == 2**32 - 1


def test_a_group_given_in_part_keeps_its_own_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nreinforce: {sampling: {temperature: 0.8}}\nfinetune: {optimiser: {batch: 2}}\n")
    recipe, _ = load_recipe(path, ("finetune.optimiser.save_every=3",))
    default = Recipe(name="x")
    assert recipe.reinforce.sampling == default.reinforce.sampling.model_copy(update={"temperature": 0.8})
    changed = {"batch": 2, "save_every": 3}
    assert recipe.finetune.optimiser == default.finetune.optimiser.model_copy(update=changed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("revise.rounds", "write it as key=value"),
        ("revise.rouns=3", "Did you mean `rounds`"),
        ("name.a=3", "has no keys below it"),
        ("seed=[1", "no YAML value"),
        ("seed=2024-13-45", "`2024-13-45` is no YAML value: .*Quote it"),
        ("seed=0x_", "no YAML value"),
        (f"seed={'9' * 5000}", "no YAML value"),
        ("seed=&a [*a]", "no YAML value: an alias"),
        (f"seed={'[' * 5000}", "no YAML value: this is nested too deeply"),
        (
            "seed=4294967296",
            "^1 problem found:\n  --set: `seed` is `4294967296`. Write a number below 4294967296.$",
        ),
        ("seed=-1", "Write a number of at least 0"),
        ("seed=1.5", "--set: `seed` is `1.5`. Write a whole number.$"),
        ("seed=null", "`seed` is empty. Write a whole number"),
        ("revise.rounds=three", "--set: `revise.rounds` is `three`. Write a whole number"),
        ("revize.rounds=3", "--set: unknown key `revize`. Did you mean `revise`"),
        (
            "judge.kind=linear-probe",
            "^1 problem found:\n  --set: `judge.kind` is `linear-probe`. Did you mean `linear_p",
        ),
        (
            "judge.kind=[choice, x]",
            "^1 problem found:\n  --set: `judge.kind.1` is `x`. Write `linear_probe`, `choice`",
        ),
        ("judge.kind=[]", "`judge.kind` is a list of 0. Write at least 1 of them"),
        (
            "reinforce.helpful_share=balance",
            "^1 problem .*\n.* is `balance`. Did .* Write a number or `balanced`.$",
        ),
        ("reinforce.guard=false", "`reinforce.guard` is `false`. Write its keys"),
        (
            "judge.endpoints=http://me:s3cret@a",
            "`judge.endpoints` is of a wrong kind. Write a list, such as",
        ),
        ("judge.thinking.clamp=[0.4]", "`judge.thinking.clamp` has only 1 items. Write one more"),
        ("name=2024-05-01", "`name` is `2024-05-01`. Write text, in quotes"),
        ("name=X Y", "`name` is `X Y`. Write lower-case letters"),
        ("red_team.sources=[{fil: x}]", "`red_team.sources.0.fil`. Did you mean `file`"),
        ("reinforce.sampling.top_p=0.9", "top_p must be 1"),
        ("reinforce.minibatch=64", r"minibatch \(64\) must not exceed episodes"),
        ("reinforce.minibatch=64", r"demo.yaml with --set: `reinforce`: minibatch \(64\) must .*\(16\)\.$"),
        ("evaluate.prompts=1", "Write a number of at least 2"),
    ],
)
def test_bad_overrides_say_what_and_how(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe("demo", (override,))


def test_faults_carry_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nsede: 3\nrevise:\n  rounds: 0\nfinetune:\n  optimiser: {lr: 3}\n")
    with pytest.raises(ProblemsError) as caught:
        load_recipe(path)
    assert {p.line for p in caught.value.problems} == {2, 4, 6}
    assert "Did you mean `seed`?" in str(caught.value)
    assert [p.line for p in caught.value.problems] == [2, 4, 6]
    with pytest.raises(ProblemsError, match="2 problems"):
        load_recipe(path, ("sede=4", "revise.rounds=1"))


def test_a_target_of_refusals_needs_ppo() -> None:
    with pytest.raises(UsageError, match="held by ppo alone: add ppo to algorithm, or set it to null"):
        load_recipe("tiny", ("reinforce.algorithm=grpo",))
    load_recipe("tiny", ("reinforce.algorithm=[ppo, dpo]",))


def test_every_field_has_bounds_or_words() -> None:
    """A setting is documented where it is declared."""
    bare = [
        f"{section}.{name}"
        for section, field in Recipe.model_fields.items()
        if hasattr(field.annotation, "model_fields") and not (field.annotation.__doc__ or "").strip()
        for name in field.annotation.model_fields
    ]
    assert bare == []


def test_recipe_and_plan_import_no_torch() -> None:
    code = "import sys, solon.cli, solon.recipe, solon.plan, solon.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"centre_scores": "prompt", "episodes": 10}, "multiple of group"),
        ({"algorithm": "grpo", "episodes": 10, "group": 5}, "multiple of minibatch"),
    ],
)
def test_episodes_make_whole_groups_and_minibatches(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"name": "r", "reinforce": settings})


def test_an_evaluator_without_settings_of_its_own_shares_the_judges_limits() -> None:
    assert Recipe(name="r").section("evaluator") == "judge"
    own = Recipe.model_validate({"name": "r", "evaluator": {"kind": "choice"}})
    assert own.section("evaluator") == "evaluator"
    assert [own.section(name) for name in ("critic", "judge")] == ["critic", "judge"]


def test_prompts_may_be_named_without_their_keys() -> None:
    recipe, _ = load_recipe("demo", ("red_team.sources=mine.csv", "red_team.helpful=[a, {file: b}]"))
    assert [source.file for source in recipe.red_team.sources] == ["mine.csv"]
    assert [source.file for source in recipe.red_team.helpful] == ["a", "b"]


def test_a_target_needs_something_that_moves_it() -> None:
    with pytest.raises(UsageError, match="kl_target multiplies beta, which is 0"):
        load_recipe("demo", ("reinforce.beta=0", "reinforce.kl_target=4", "reinforce.kl_horizon=100"))
    with pytest.raises(UsageError, match="raise helpful_share above 0"):
        load_recipe("demo", ("reinforce.over_refusal_target=0.1", "reinforce.helpful_share=0"))


@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_settings_are_finite(value: str) -> None:
    with pytest.raises(UsageError, match=r"`reinforce\.beta` is .* Write a number"):
        load_recipe("demo", (f"reinforce.beta={value}",))


def test_a_folder_is_no_recipe_but_may_hold_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(UsageError, match=r"it is a folder\. Name the file: .*recipe\.yaml"):
        load_recipe(tmp_path)


def test_dpo_has_no_episodes_in_the_plan() -> None:
    planned = BY_NAME["reinforce"].planned
    assert planned(load_recipe("demo", ("reinforce.algorithm=dpo",))[0]) == "dpo: 2 epochs of pairs"
    both = planned(load_recipe("demo", ("reinforce.algorithm=[ppo, dpo]",))[0])
    assert both == "ppo: 8 steps x 16 episodes; dpo: 2 epochs of pairs"


def test_the_supply_of_prompts_is_told_beside_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"question {i}\n" for i in range(40)))
    (tmp_path / "kept.txt").write_text("one\ntwo\n")
    changes = ("red_team.sources=many.txt", "red_team.helpful=many.txt", "red_team.written=0")
    sizes = ("revise.prompts=31", "revise.helpful=30", "sample.prompts=30", "sample.helpful=30")
    evaluated = (
        "red_team.heldout=0.25",
        "red_team.heldout_sources=kept.txt",
        "evaluate.prompts=12",
        "evaluate.helpful=11",
    )
    recipe, _ = load_recipe("demo", (*changes, *sizes, *evaluated))
    assert list(supply(recipe, tmp_path)) == [
        "red-team prompts: about 30 for training and 12 held out",
        "revise.prompts asks for 31: there are about 30, and all are taken",
        "ordinary prompts: about 30 for training and 10 held out",
        "evaluate.helpful asks for 11: there are about 10, and all are taken",
    ]
