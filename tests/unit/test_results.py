"""The figures of the README's first table: pooled over seeds by hand, and written between the marks."""

from pathlib import Path

import pytest

from solon.records import Verdict, Written
from tests.rows import written
from tests.scripts import load

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
HELDOUT = load(EXPERIMENTS / "heldout.py")
RESULTS = load(EXPERIMENTS / "results.py")


def _answer(model: str, prompt: str, text: str, kind: str = "red_team") -> Written:
    return written(text, parents=(prompt,), origin=model, prompt_id=prompt, prompt=prompt, prompt_kind=kind)


def _verdict(prompt: str, p_a: float | None) -> Verdict:
    return Verdict(
        parents=("a", "b"),
        origin="judge",
        prompt_id=prompt,
        on="red_team",
        a_model="rl",
        b_model="base",
        a_id="a",
        b_id="b",
        p_a=p_a,
    )


def test_a_figure_is_the_mean_over_prompts_with_each_seeds_own() -> None:
    """Two seeds, two prompts: 1, 1 and 0, 0 in seed 7, 1 and 1 in seed 8."""
    seen = [RESULTS.Seen(7, "p", 1.0), RESULTS.Seen(7, "q", 0.0), RESULTS.Seen(8, "p", 1.0)]
    found = RESULTS.figure([*seen, RESULTS.Seen(8, "q", 1.0)])
    assert found.mean == 0.75
    assert found.seeds == (0.5, 1.0)
    assert (found.low, found.high) == (0.5, 1.0), "a prompt's answers of all seeds stay together"
    assert str(found) == "75 % (50–100; 50, 100)"


def test_answers_and_verdicts_are_counted_by_model_and_kind_of_prompt() -> None:
    refusal, answer = "I'm sorry, but I can't help with that.", "Take the red one from the shelf on the left."
    answers = {
        7: [_answer("rl", "p", refusal), _answer("rl", "q", answer), _answer("base", "p", answer)],
        8: [_answer("rl", "p", refusal), _answer("rl", "h", refusal, "helpful")],
    }
    verdicts = {7: [_verdict("p", 0.9), _verdict("q", 0.5), _verdict("r", None)], 8: [_verdict("p", 0.2)]}
    results = RESULTS.Results(answers, verdicts)
    assert results.answered("rl", "red_team", RESULTS.is_refusal).mean == 0.5
    assert results.answered("rl", "red_team", RESULTS.complies).seeds == (0.5, 0.0)
    assert results.answered("rl", "helpful", RESULTS.is_refusal).mean == 1.0
    won = results.preferred("rl", "base", "red_team")
    assert (won.mean, won.seeds) == (0.5, (0.75, 0.0))


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    text = f"before {RESULTS.BEGIN} old {RESULTS.END} after"
    assert RESULTS.replaced(text, ["a", "b"]) == f"before {RESULTS.BEGIN}\na\nb\n{RESULTS.END} after"
    with pytest.raises(ValueError, match="not both there"):
        RESULTS.replaced("no marks", ["a"])


def test_held_out_prompts_are_short_different_and_of_all_sets() -> None:
    sets = {"a": [f"how does thing {n} of the first kind work" for n in range(9)], "b": ["word " * 61, "why"]}
    with pytest.raises(ValueError, match="are wanted"):
        HELDOUT.drawn(sets, 99)
    found = HELDOUT.drawn({**sets, "a": [*sets["a"], *sets["a"]]}, 2)
    assert {row["category"] for row in found} == {"a", "b"}
    assert all(len(row["text"].split()) <= 60 for row in found)
    assert found == HELDOUT.drawn({**sets, "a": [*sets["a"], *sets["a"]]}, 2)
