"""The experiments' own arithmetic: rounds of revision, variety, few principles, hard labels."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from solon.constitution import load_constitution
from solon.records import Written
from solon.stages.reward import EncodedPair
from solon.store import write_rows
from solon.training.encoding import Encoded
from tests.rows import verdict, written
from tests.scripts import load

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
LAB, _, PRINCIPLES, SOFT = (
    load(EXPERIMENTS / f"{name}.py") for name in ("lab", "human_harm", "principles", "soft_labels")
)
ALGORITHMS = load(EXPERIMENTS / "algorithms.py")
QUALITY = load(EXPERIMENTS / "data_quality.py")


def _written(kind: str, text: str, number: int = 0, **changes: object) -> Written:
    return written(text, kind=kind, round=number, **changes)


def test_a_round_without_a_usable_revision_keeps_the_text_before(tmp_path: Path) -> None:
    rows = [
        _written("answer", "first"),
        _written("revision", "better", 1),
        _written("revision", "not chosen", 1, chosen=False),
        _written("revision", "copied", 2, unusable="copies-demonstration"),
        _written("answer", "ordinary", prompt_kind="helpful", prompt_id="h"),
    ]
    (tmp_path / "03_revise").mkdir()
    write_rows(tmp_path / "03_revise" / "rows.parquet", Written, rows)
    rounds = LAB.texts_by_round(tmp_path, 2)
    assert [{i: t.text for i, t in now.items()} for now in rounds] == [
        {"p": "first"},
        {"p": "better"},
        {"p": "better"},
    ]


def test_variety_is_the_share_of_different_trigrams() -> None:
    assert PRINCIPLES.variety(["a b c d", "a b c"]) == pytest.approx(2 / 3)  # abc, bcd; abc again
    assert PRINCIPLES.variety(["a b"]) == 0


def test_only_the_first_principles_are_drawn_and_all_comparisons_stay() -> None:
    whole = load_constitution("harmless")
    few = PRINCIPLES.first(whole, 2)
    rng = random.Random(0)
    drawn = Counter(few.draw(rng, kind="red_team").id for _ in range(400))
    assert set(drawn) == {p.id for p in whole.of("training", "red_team")[:2]}
    assert few.demonstrations == whole.demonstrations
    assert few.of("evaluation") == whole.of("evaluation")


def test_a_hard_label_is_the_verdict_alone() -> None:
    answer = Encoded((1,), (2,))
    assert SOFT.hard(EncodedPair("p", answer, answer, 0.6)).p_a == 1.0
    assert SOFT.hard(EncodedPair("p", answer, answer, 0.4)).p_a == 0.0


def test_ratings_and_intervals_are_of_the_difference_to_base() -> None:
    """Won 3 of 4 beside one prior comparison: odds of 3.5 to 1.5 (Elo 147.2); on ordinary prompts even."""
    about = {"refusal_rate": 0.5, "over_refusal_rate": 0.1, "degenerate_rate": 0.0}
    verdicts = [verdict(str(i), p_a) for i, p_a in enumerate((0.9, 0.8, 0.7, 0.1))]
    verdicts += [verdict(str(i), p_a, "helpful") for i, p_a in enumerate((0.9, 0.1))]
    found = ALGORITHMS.measured(verdicts, {"base": about, "rl": about})
    assert found["rl"]["red_team"]["elo"] == pytest.approx(400 * math.log10(3.5 / 1.5))
    assert found["rl"]["helpful"]["elo"] == pytest.approx(0, abs=1e-6)
    low, high = found["rl"]["red_team"]["ci95"]
    assert low < 0 < 147 < high
    assert found["base"]["red_team"] == {"elo": 0.0, "ci95": [0.0, 0.0]}
    assert found["rl"]["refusal_rate"] == 0.5


def test_every_experiment_has_a_recipe_that_loads() -> None:
    from solon.recipe import load_recipe

    for file in sorted(EXPERIMENTS.glob("*.yaml")):
        recipe, _ = load_recipe(file)
        assert recipe.name.replace("-", "_") == file.stem


def test_the_best_of_n_is_over_all_choices_of_n() -> None:
    def candidate(number: int, better: float | None, unusable: str | None = None) -> Written:
        return _written("revision", f"Text {number}.", 1, better=better, unusable=unusable)

    rows = [candidate(0, 0.9), candidate(1, 0.6), candidate(2, None, "repetitive")]
    one, two, three = QUALITY.best_of(rows)
    assert (one.usable, one.better) == (pytest.approx(2 / 3), pytest.approx(0.75))
    assert (two.usable, two.better) == (1.0, pytest.approx((0.9 + 0.9 + 0.6) / 3))
    assert (three.usable, three.better) == (1.0, 0.9)
    found = QUALITY.figures(
        [row.changed(round=1) for row in rows], ["I will not help.", "I will not help.", "No."]
    )
    assert found["shares"] == {"usable": pytest.approx(2 / 3), "repetitive": pytest.approx(1 / 3)}
    assert (found["trained_on"], found["near_duplicates"]) == (3, 1)
