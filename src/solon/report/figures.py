"""Which figures a run has data for, each with the words that explain it. Loads Matplotlib."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from solon.report import heatmap, plots
from solon.report.rundata import RunData


@dataclass(frozen=True)
class Figure:
    """A drawing, safe to set into the page as it is, and its caption."""

    svg: Markup
    caption: str


def figures(run: RunData) -> list[Figure]:
    """The figures in the order of the method; one whose stage has not run is left out."""
    drawn = (_figure(draw, data, caption) for draw, data, caption in _available(run))
    return list(drawn)


def agreement_figure(run: RunData) -> Figure | None:
    """How often the principles agree; None where fewer than two of them were asked about the same pairs."""
    found = run.summary.get("principles", {"principles": []})
    if len(found["principles"]) < 2:
        return None
    names = [effect["principle"] for effect in found["principles"]]
    return Figure(Markup(heatmap.agreement(names, found["agreement"])), _AGREEMENT)


def _available(run: RunData) -> Iterator[tuple[Callable[[Any], str], list[Any], str]]:
    evaluation = run.summary.get("evaluation", {})
    rounds = [r for r in evaluation.get("revision_rounds", []) if r["win_rate"] is not None]
    if rounds:
        yield plots.revision_curve, rounds, _REVISIONS.format(n=rounds[0]["n"])
    bins = run.summary.get("reward_model", {}).get("reliability", [])
    if bins:
        yield plots.calibration, bins, _CALIBRATION
    if run.ppo:
        yield plots.reward_against_kl, run.ppo, _REWARD_KL
        yield plots.ppo_curves, run.ppo, _CURVES
    ratings = evaluation.get("ratings", [])
    if ratings:
        yield plots.ratings, ratings, _RATINGS


def _figure(draw: Callable[[Any], str], data: list[Any], caption: str) -> Figure:
    # Markup: the drawing is Matplotlib's, which escapes every text that it is given.
    return Figure(Markup(draw(data)), caption)


_REVISIONS = (
    "On the red-team training prompts, the share on which the evaluation's judge prefers the text after each "
    "round to the first answer. A revision that a filter rejected leaves the text before it in place. "
    "Bars: 95 % intervals over {n} prompts."
)
_CALIBRATION = (
    "On pairs of prompts that the reward model was not trained on: the preference it predicts against the "
    "one that the judge gave, in ten bins. On the diagonal, a predicted 70 % is a 70 %. Larger points hold "
    "more pairs."
)
_REWARD_KL = (
    "One point for each PPO step, paler for earlier steps. The further right, the further the policy has "
    "moved from the model that it started from; distance that brings no higher score was bought for nothing."
)
_CURVES = (
    "The optimised reward (score less the KL penalty), the distance from the SL model, the entropy of the "
    "policy, the length of its answers, and how many of them refuse; of the prompts that were drawn, which "
    "may be the hard ones. From ten steps on, the strong line is the mean of five steps. Falling entropy "
    "with rising reward is the usual sign of a policy that narrows."
)
_AGREEMENT = (
    "Of the pairs that both scored, the share in % on which two principles prefer the same answer. Green: "
    "more often the same one; orange: more often the other one; without colour at 50, where two coins would "
    "be. A dash: no pair that both scored. To this judge, principles that always agree are one."
)
_RATINGS = (
    "Bradley–Terry ratings of the three models from all their comparisons. A difference of 1 nat means "
    "odds of 2.7 to 1 in favour of the better one. Bars: 95 % intervals over resampled prompts."
)
