"""The figures of the README's first table: pooled over seeds by hand, and written between the marks."""

import json
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from solon import shipped
from solon.constitution import load_constitution
from solon.recipe import load_recipe
from solon.records import Verdict, Written
from solon.store import write_rows
from solon.text import drop_near_duplicates
from tests.rows import verdict, written
from tests.scripts import load

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
HELDOUT = load(EXPERIMENTS / "heldout.py")
load(EXPERIMENTS / "lab.py")
HARM = load(EXPERIMENTS / "human_harm.py")
KEPT = load(EXPERIMENTS / "kept.py")
RESULTS = load(EXPERIMENTS / "results.py")
BEHAVIOUR = load(EXPERIMENTS / "behaviour.py")


def _answer(model: str, prompt: str, text: str, kind: str = "red_team") -> Written:
    return written(text, parents=(prompt,), origin=model, prompt_id=prompt, prompt=prompt, prompt_kind=kind)


def test_a_figure_is_the_mean_over_prompts_with_each_seeds_own() -> None:
    """Two seeds, two prompts: 1, 1 and 0, 0 in seed 7, 1 and 1 in seed 8."""
    seen = [RESULTS.Seen(7, "p", 1.0), RESULTS.Seen(7, "q", 0.0), RESULTS.Seen(8, "p", 1.0)]
    found = RESULTS.figure([*seen, RESULTS.Seen(8, "q", 1.0)])
    assert found.mean == 0.75
    assert found.seeds == (0.5, 1.0)
    assert (found.low, found.high) == (0.5, 1.0), "a prompt's answers of all seeds stay together"
    assert str(found) == "75 % (50–100; 50, 100)"


def _asked(prompt: str, on: str = "red_team", preferred: dict[str, float] | None = None, **answers):  # type: ignore[no-untyped-def]
    """Of each model (refused, degenerate, harm)."""
    return KEPT.Asked(prompt, on, {m: KEPT.Answered(*said) for m, said in answers.items()}, preferred or {})


def test_answers_and_verdicts_are_counted_by_model_and_kind_of_prompt() -> None:
    refusal, answer = (True, False, 0.0), (False, False, 0.0)
    results = RESULTS.Results(
        {
            7: [
                _asked("p", preferred={"rl>base": 1.0}, rl=refusal),
                _asked("q", preferred={"rl>base": 0.5}, rl=answer),
            ],
            8: [
                _asked("p", preferred={"rl>base": 0.0}, rl=refusal),
                _asked("h", "helpful", rl=refusal),
                _asked("r", rl=refusal),
            ],
        }
    )
    assert results.answered("rl", "red_team", lambda a: a.refused).seeds == (0.5, 1.0)
    assert results.answered("rl", "red_team", lambda a: a.complies).seeds == (0.5, 0.0)
    assert results.answered("rl", "helpful", lambda a: a.refused).mean == 1.0
    won = results.preferred("rl", "base", "red_team")
    assert (won.mean, won.seeds) == (0.5, (0.75, 0.0)), "what the judge left open is not counted"


def test_the_classifiers_order_counts_only_where_peoples_scores_differ() -> None:
    assert HARM.less_harmful(-1.0, 0.5) == 1.0
    assert HARM.less_harmful(0.5, -1.0) == 0.0
    assert HARM.less_harmful(-3.0, -1.9) == 1.0
    assert HARM.less_harmful(-3.0, -2.1) == HARM.less_harmful(0.4, 0.4) == 0.5


def test_what_peoples_scores_say_of_answers_below_a_level() -> None:
    """Three below -2: scores 0, 0 and 0.2; of the two unequal pairs one is in people's order."""
    said, harm = np.array([-4.0, -3.0, -3.5, 1.0]), np.array([0.0, 0.0, 0.2, 1.0])
    found = HARM.below(said, harm, -2.0)
    assert found == {"pairs": 3, "equal": pytest.approx(1 / 3), "ordered": pytest.approx(0.5)}


def test_the_classifier_compares_two_models_prompt_by_prompt() -> None:
    """Log-odds: base 1, 2 and -2.5, rl -1 (less harmful), 2 (equal: half) and -3 (equal above a level)."""
    asked = [
        _asked("p", base=(False, False, 1.0), rl=(True, False, -1.0)),
        _asked("q", base=(False, False, 2.0), rl=(False, False, 2.0)),
        _asked("r", base=(False, False, -2.5), rl=(False, False, -3.0)),
        _asked("h", "helpful", base=(False, False, None), rl=(False, False, None)),
    ]
    results = RESULTS.Results({7: asked})
    assert results.less_harmful("rl", "base", -2.0).mean == pytest.approx(2 / 3)
    assert results.less_harmful("rl", "base", -np.inf).mean == pytest.approx(2.5 / 3)
    with pytest.raises(ValueError, match="red-team prompts alone"):
        RESULTS.harm(asked[-1].answers["rl"])


def test_a_change_from_base_is_paired_by_prompt() -> None:
    """RL refuses one that base does not, and the other way round, and one more: +1, -1, +1 of three."""
    refusal, answer = (True, False, None), (False, False, None)
    pairs = ((answer, refusal), (refusal, answer), (answer, refusal))
    asked = [_asked(str(i), "helpful", base=base, rl=rl) for i, (base, rl) in enumerate(pairs)]
    found = RESULTS.Results({7: asked}).changed("rl", "helpful", lambda a: a.refused)
    assert found.mean == pytest.approx(1 / 3)
    assert found.points == "+33.3 (-100.0 to +100.0; +33)"
    same = [_asked(str(i), "helpful", base=answer, rl=answer) for i in range(20)]
    found = RESULTS.Results({7: same}).changed("rl", "helpful", lambda a: a.refused)
    assert found.mean == 0.0
    # Wilson's interval for 0 of 20 ends at z^2 / (n + z^2), z = 1.96
    assert (found.low, found.high) == (pytest.approx(-0.1611, abs=1e-4), pytest.approx(0.1611, abs=1e-4))


def test_a_run_becomes_numbers_and_they_come_back_for_the_same_recipe_alone(tmp_path: Path) -> None:
    refusal, answer = "I'm sorry, but I can't help with that.", "Take the red one from the shelf on the left."
    answers = [
        *(_answer("base", "p", answer), _answer("rl", "p", refusal)),
        *(_answer("base", "h", answer, "helpful"), _answer("rl", "h", answer, "helpful")),
    ]
    (tmp_path / "09_evaluate").mkdir()
    write_rows(tmp_path / "09_evaluate" / "answers.parquet", Written, answers)
    write_rows(tmp_path / "09_evaluate" / "rows.parquet", Verdict, [verdict("p", 0.9), verdict("h", None)])
    odds = {("p", answer): 1.5, ("p", refusal): -2.0}
    found = KEPT.measured(tmp_path, lambda asked: [odds[one] for one in asked])
    assert found == [
        _asked("p", preferred={"rl>base": 1.0}, base=(False, False, 1.5), rl=(True, False, -2.0)),
        _asked("h", "helpful", base=(False, False, None), rl=(False, False, None)),
    ]
    file = tmp_path / "kept" / "tiny-7.jsonl"
    KEPT.write(file, "this", found)
    assert KEPT.read(file, "this") == found
    with pytest.raises(ValueError, match="another version"):
        KEPT.read(file, "that")


def test_seeds_machines_and_held_out_prompts_leave_a_recipe_what_it_is() -> None:
    recipe, path = load_recipe("tiny")
    same, _ = load_recipe(
        "tiny", ("seed=8", "device=cuda", "revise.batch=512", "evaluate.prompts=240", "red_team.heldout=0")
    )
    other, _ = load_recipe("tiny", ("finetune.best=0.4",))
    names = [KEPT.identity(each, path.parent) for each in (recipe, same, other)]
    assert names[0] == names[1] != names[2]


def test_seeds_that_were_asked_different_prompts_are_not_pooled() -> None:
    one, two = _asked("p"), _asked("p", "helpful")
    assert RESULTS.same_prompts({7: [one, two], 8: [two, one]}) == {("p", "red_team"), ("p", "helpful")}
    with pytest.raises(ValueError, match="different prompts"):
        RESULTS.same_prompts({7: [one, two], 8: [one]})


def test_agreement_with_people_by_hand() -> None:
    """Harmful: 2, -1; harmless: -3, -1, 1. Right: 2, -3, -1. Of six pairs, 3 + 1/2 + 1 are ranked right."""
    said, harm = np.array([2.0, -1.0, -3.0, -1.0, 1.0]), np.array([1.0, 0.5, 0.0, 0.25, 0.4])
    found = HARM.agreement(said, harm, ["p", "p", "q", "r", "r"])
    assert found.right.mean == pytest.approx(3 / 5)
    assert found.ranked.mean == pytest.approx(4.5 / 6)
    with pytest.raises(ValueError, match="of one sort"):
        HARM.agreement(said[:2], harm[:2], ["p", "q"])


def test_the_less_harmful_of_two_answers_by_a_classifier_of_known_odds() -> None:
    class Known(HARM.Classifier):  # type: ignore[name-defined,misc]
        def __call__(self, answers):  # type: ignore[no-untyped-def]
            return np.array([{"mild": -1.0, "bad": 2.0}[text] for _, text in answers])

    known = Known(None, 0.5, None, None, {})
    pairs = [("q", "mild", "bad"), ("q", "bad", "mild"), ("q", "bad", "bad")]
    assert known.less_harmful(pairs) == [1, 0, 0.5]


def test_harm_scores_are_the_mean_of_the_raters(tmp_path: Path) -> None:
    (tmp_path / "labelled").mkdir()
    text = '# a note\nobjective,assistant_response,human_score_1,human_score_2\nq,"x, y",1,0.5\nr,z,0,\n'
    (tmp_path / "labelled" / "pyrit_harm_x.csv").write_text(text)
    assert [(row.answer, row.harm) for row in HARM.labelled(tmp_path)] == [("x, y", 0.75), ("z", 0.0)]
    with pytest.raises(FileNotFoundError, match="--data"):
        HARM.labelled(tmp_path / "labelled")


def test_the_distance_between_kinds_by_hand() -> None:
    """3 of 4 and 0 of 4: log(3.5 / 1.5) - log(0.5 / 4.5)."""
    harmful, ordinary = (BEHAVIOUR.share_of(hits, 4) for hits in (3, 0))
    assert BEHAVIOUR.distance(harmful, ordinary) == pytest.approx(np.log(21))
    assert (harmful.mean, ordinary.mean, harmful.n) == (0.75, 0.0, 4)


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    begin, end = "<!-- results tiny: begin -->", "<!-- results tiny: end -->"
    text = f"before {begin} old {end} after <!-- results demo: begin -->"
    new = f"before {begin}\na\nb\n{end} after <!-- results demo: begin -->"
    assert RESULTS.replaced(text, "tiny", ["a", "b"]) == new
    with pytest.raises(ValueError, match=r"demo.*not both there"):
        RESULTS.replaced(text, "demo", ["a"])


def test_held_out_prompts_are_short_different_and_of_all_sets() -> None:
    sets = {"a": [f"how does thing {n} of the first kind work" for n in range(9)], "b": ["word " * 61, "why"]}
    with pytest.raises(ValueError, match="are wanted"):
        HELDOUT.drawn(sets, 99)
    found = HELDOUT.drawn({**sets, "a": [*sets["a"], *sets["a"]]}, 2)
    assert {row["category"] for row in found} == {"a", "b"}
    assert all(len(row["text"].split()) <= 60 for row in found)
    assert found == HELDOUT.drawn({**sets, "a": [*sets["a"], *sets["a"]]}, 2)


def test_what_is_reported_on_is_not_what_was_developed_on_nor_near_a_shipped_prompt(tmp_path: Path) -> None:
    data = Path(__file__).parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the public sets are not here")
    reported, developed = (HELDOUT.write(data, tmp_path, draw) for draw in ("reported", "developed"))
    ours = [load_prompts(name) for name in ("red_team", "helpful")]
    shown = sorted(load_constitution("harmless").demonstrations.prompts)
    for file, other, own in zip(astuple(reported), astuple(developed), ours, strict=True):
        new, old = _texts(file), _texts(other)
        assert len(new) == len(old) == (240 if own is ours[0] else 150)
        before = [*old, *own, *shown]
        kept = drop_near_duplicates([*before, *new], 0.6)
        assert sum(i >= len(before) for i in kept) >= len(new) - (0 if own is ours[1] else 5)


def load_prompts(name: str) -> list[str]:
    return _texts(shipped.find("prompts", name, ".jsonl", Path()))


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_what_the_classifier_says_of_an_answer_is_chosen_without_its_request() -> None:
    """The first state holds the label, the second is noise; a wrong label moves what is said of others."""
    rng = np.random.default_rng(0)
    harm = np.tile([1.0, 0.0], 20)
    states = rng.normal(size=(40, 2, 1))
    states[:, 0, 0] = 2 * harm - 1
    requests = [f"request {i // 2}" for i in range(40)]
    found = HARM.unseen(states, harm, requests)
    assert ((found > 0) == (harm > 0.5)).all()
    changed = harm.copy()
    changed[:2] = 1 - changed[:2]
    again = HARM.unseen(states, changed, requests)
    same_fold = np.isclose(found, again)
    assert same_fold[:2].all(), "its own label has no part in what is said of it"
    assert not same_fold.all()
