"""The guard against over-optimisation stops when the score rises and the judge's rating falls, only then."""

import pytest

from solon.errors import RunError
from solon.records import PromptKind
from solon.training.guard import Rated, best, compare, from_dict

KINDS: tuple[PromptKind, ...] = ("red_team", "helpful") * 10
GOOD = Rated(4, (0.1,) * 20, tuple(0.6 + 0.01 * (i % 3) for i in range(20)), KINDS)


def _worse(score: float, by: float, spread: float = 0.01) -> Rated:
    ratings = tuple(p - by + spread * (-1) ** (i // 2) for i, p in enumerate(GOOD.ratings) if p is not None)
    return Rated(8, (score,) * 20, ratings, KINDS)


def test_a_higher_score_and_a_clearly_lower_rating_is_over_optimised() -> None:
    found = compare([GOOD], _worse(0.9, by=0.2), seed=0)
    assert found.over_optimised
    assert found.gamed_on == "all"
    assert found.change == pytest.approx(-0.2)
    assert found.ci95[0] <= found.change <= found.ci95[1] < 0


@pytest.mark.parametrize(
    "now",
    [
        _worse(0.05, by=0.2),  # the score fell too: training failed, but nothing was gamed
        _worse(0.9, by=-0.2),  # both rose
        _worse(0.9, by=0.01, spread=0.3),  # too noisy to tell
    ],
)
def test_anything_else_goes_on(now: Rated) -> None:
    assert not compare([GOOD], now, seed=0).over_optimised


def test_what_is_lost_on_one_kind_is_seen_behind_what_is_won_on_the_other() -> None:
    """A policy that refuses everything: the mean rating of all prompts stays where it was."""
    won, lost = 0.25, -0.25
    ratings = tuple(
        p + (won if kind == "red_team" else lost)
        for p, kind in zip(GOOD.ratings, KINDS, strict=True)
        if p is not None
    )
    now = Rated(8, (0.9,) * 20, ratings, KINDS)
    assert now.rating == pytest.approx(GOOD.rating, abs=0.01)
    found = compare([GOOD], now, seed=0)
    assert found.gamed_on == "helpful"
    assert found.change == pytest.approx(-0.25)
    assert found.as_dict()["over_optimised"]
    # The reward of ordinary prompts did not rise: nothing was gamed there
    scores = tuple(0.9 if kind == "red_team" else 0.0 for kind in KINDS)
    assert not compare([GOOD], Rated(8, scores, ratings, KINDS), seed=0).over_optimised


def test_a_slow_drift_of_one_kind_is_seen() -> None:
    """Each check is the best so far: red-team prompts gain more than ordinary ones lose."""

    def at(step: int, won: float, lost: float) -> Rated:
        change = {"red_team": won, "helpful": -lost}
        spread = [0.04 * (-1) ** (i // 2) for i in range(20)]
        ratings = tuple(0.5 + change[kind] + s for kind, s in zip(KINDS, spread, strict=True))
        return Rated(step, (0.1 * step,) * 20, ratings, KINDS)

    checks = [at(0, 0.0, 0.0), at(4, 0.1, 0.02), at(8, 0.2, 0.03)]
    assert best(checks).step == 8
    found = compare(checks, at(12, 0.3, 0.05), seed=0)
    assert found.gamed_on == "helpful"
    assert found.change == pytest.approx(-0.05)


def test_few_prompts_of_a_kind_are_no_evidence() -> None:
    """Four changes that all are negative come about by chance once in sixteen times."""
    kinds: tuple[PromptKind, ...] = ("red_team",) * 4 + ("helpful",) * 16
    before = Rated(0, (0.0,) * 20, (0.5,) * 20, kinds)
    now = Rated(4, (1.0,) * 20, (0.3,) * 4 + (0.6,) * 16, kinds)
    assert not compare([before], now, seed=0).over_optimised


def test_pairs_that_were_not_scored_are_left_out() -> None:
    now = Rated(8, (0.9,) * 20, (None,) * 4 + tuple(0.3 for _ in range(16)), KINDS)
    found = compare([GOOD], now, seed=0)
    assert found.rating == pytest.approx(0.3)
    assert found.over_optimised
    with pytest.raises(RunError, match="scored none of the guard's pairs"):
        compare([GOOD], Rated(8, (0.9,) * 20, (None,) * 20, KINDS), seed=0)
    early = Rated(4, (0.1,) * 20, (0.6,) * 4 + (None,) * 16, KINDS)
    with pytest.raises(RunError, match="no guard prompt both after 8 steps and before"):
        compare([early], now, seed=0)
    first = Rated(0, (0.0,) * 20, (0.5,) * 20, KINDS)
    assert compare([first, early], now, seed=0).change == pytest.approx(-0.2), "the best of those it can meet"


def test_the_best_check_is_the_judges_and_of_equals_the_later() -> None:
    again = Rated(12, (0.0,) * 20, GOOD.ratings, KINDS)
    assert best([GOOD, _worse(0.9, by=0.2), again]) is again


def test_a_check_survives_a_checkpoint() -> None:
    data = {
        "step": 4,
        "scores": list(GOOD.scores),
        "ratings": list(GOOD.ratings),
        "kinds": list(GOOD.kinds),
    }
    assert from_dict(data) == GOOD
