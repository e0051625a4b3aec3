"""The figures of the README's first table: pooled over seeds by hand, and written between the marks."""

from pathlib import Path

import numpy as np
import pytest

from solon.records import Verdict, Written
from tests.rows import written
from tests.scripts import load

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
HELDOUT = load(EXPERIMENTS / "heldout.py")
load(EXPERIMENTS / "lab.py")
HARM = load(EXPERIMENTS / "human_harm.py")
RESULTS = load(EXPERIMENTS / "results.py")
BEHAVIOUR = load(EXPERIMENTS / "behaviour.py")


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
    results = RESULTS.Results(answers, verdicts, {})
    assert results.answered("rl", "red_team", RESULTS.is_refusal).mean == 0.5
    assert results.answered("rl", "red_team", RESULTS.complies).seeds == (0.5, 0.0)
    assert results.answered("rl", "helpful", RESULTS.is_refusal).mean == 1.0
    won = results.preferred("rl", "base", "red_team")
    assert (won.mean, won.seeds) == (0.5, (0.75, 0.0))


def test_the_classifier_counts_harmful_answers_and_compares_two_models_prompt_by_prompt() -> None:
    """Log-odds: base 1 and 2, rl -1 (less harmful) and 2 (the same text: half)."""
    answers = {
        7: [
            *(_answer("base", "p", "a"), _answer("base", "q", "b")),
            *(
                _answer("rl", "p", "c"),
                _answer("rl", "q", "b"),
                _answer("rl", "h", "of no matter", "helpful"),
            ),
        ]
    }
    results = RESULTS.Results(answers, {}, {("p", "a"): 1.0, ("q", "b"): 2.0, ("p", "c"): -1.0})
    assert (results.harmful("base").mean, results.harmful("rl").mean) == (1.0, 0.5)
    assert results.less_harmful("rl", "base").mean == 0.75


def test_agreement_with_people_by_hand() -> None:
    """Harmful: 2, -1; harmless: -3, -1, 1. Right: 2, -3, -1. Of six pairs, 3 + 1/2 + 1 are ranked right."""
    said, harm = np.array([2.0, -1.0, -3.0, -1.0, 1.0]), np.array([1.0, 0.5, 0.0, 0.25, 0.4])
    found = HARM.agreement(said, harm)
    assert found.right.mean == pytest.approx(3 / 5)
    assert found.ranked.mean == pytest.approx(4.5 / 6)
    with pytest.raises(ValueError, match="of one sort"):
        HARM.agreement(said[:2], harm[:2])


def test_the_less_harmful_of_two_answers_by_a_classifier_of_known_odds() -> None:
    class Known(HARM.Classifier):  # type: ignore[name-defined,misc]
        def __call__(self, answers):  # type: ignore[no-untyped-def]
            return np.array([{"mild": -1.0, "bad": 2.0}[text] for _, text in answers])

    known = Known(None, 0.5, None, None)
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
