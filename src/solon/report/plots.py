"""The report's figures: numbers in, one SVG string out, in the colours of the page.

Loads Matplotlib, so it is imported only where a report is written. Every function raises ValueError when
it is given nothing to draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from solon.report import ink
from solon.report.statistics import moving_mean
from solon.report.wording import NAMES

MODELS = {**NAMES, "base": "Base"}  # A label begins with a capital
SETS = {"red_team": "Red-team prompts", "helpful": "Ordinary prompts"}
_COLOURS = {"base": ink.BASE, "sl": ink.SL, "rl": ink.RL}
_SMOOTHED_FROM = 10
_WINDOW = 5

Numbers = Mapping[str, Any]


@contextmanager
def _drawing(given: Sequence[Any], title: str, height: int) -> Iterator[ink.Canvas]:
    if not given:
        raise ValueError(f"{title}: nothing to draw.")
    with ink.drawing(title, height) as canvas:
        yield canvas


def revision_curve(rounds: Sequence[Numbers]) -> str:
    """How often the judge prefers each round's text to the first answer.

    Args:
        rounds: one mapping a round: `round`, `win_rate` and `ci95` as shares of 1. Round 0, the first answer
            against itself, is 50 % by definition and added here.
    """
    title = "Each round's text against the first answer"
    with _drawing(rounds, title, 300) as canvas:
        (axes,) = canvas.axes()
        numbers = [0, *(r["round"] for r in rounds)]
        rates = [0.5, *(r["win_rate"] for r in rounds)]
        intervals = [(0.5, 0.5), *(r["ci95"] for r in rounds)]
        _chance(axes, "no better than the first answer")
        axes.plot(numbers, rates, color=ink.ACCENT, alpha=0.45)
        _with_intervals(axes, numbers, rates, intervals, ink.ACCENT)
        for x, y in zip(numbers[1:], rates[1:], strict=True):
            _note(axes, f"{y:.0%}".replace("%", " %"), (x, y), (9, 5))
        axes.set_title(title)
        axes.set_xlabel("Round of critique and revision (0 = first answer)")
        axes.set_ylabel("Preferred by the judge (%)")
        axes.set_xlim(-0.25, max(numbers) + 0.4)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    return canvas.svg


def reward_against_kl(steps: Sequence[Numbers]) -> str:
    """What the reward cost in distance from the SL model: one point a PPO step, joined in their order.

    Args:
        steps: `kl` (nats an episode) and `score` (what PPO was given: the reward model's, with every
            clipping and price of the recipe), in the order of the steps.
    """
    title = "Reward against distance from the SL model"
    with _drawing(steps, title, 340) as canvas:
        (axes,) = canvas.axes()
        kl, score = ([float(s[name]) for s in steps] for name in ("kl", "score"))
        axes.plot(kl, score, color=ink.RL, linewidth=0.9, alpha=0.4)
        for i, point in enumerate(zip(kl, score, strict=True)):
            # Later steps are drawn more strongly, so that the direction shows without the line.
            axes.plot(*point, "o", color=ink.RL, markersize=4.5, alpha=0.3 + 0.7 * i / len(steps), mew=0)
        ends = [("step 1", 0, ink.SL, (10, -13)), (f"step {len(steps)}", -1, ink.RL, (10, -3))]
        for words, i, colour, offset in ends[: len(steps)]:
            axes.plot(kl[i], score[i], "o", color=colour, markersize=9, mec=ink.PAPER, mew=1.5, zorder=4)
            _note(axes, words, (kl[i], score[i]), offset)
        axes.set_title(title)
        axes.set_xlabel("KL divergence from the SL model (nats an episode)")
        axes.set_ylabel("Mean score that PPO was given")
        axes.margins(x=0.14, y=0.14)
    return canvas.svg


_CURVES = (
    ("reward", "Reward", "score − β · KL", ink.RL),
    ("kl", "KL from the SL model", "nats an episode", ink.ACCENT),
    ("entropy", "Entropy", "nats a token", ink.ACCENT),
    ("length", "Length", "tokens an answer", ink.ACCENT),
    ("refused_red_team", "Refusals, red-team prompts", "share of answers", ink.RL),
    ("refused_helpful", "Refusals, ordinary prompts", "share of answers", ink.SL),
)


def ppo_curves(steps: Sequence[Numbers]) -> str:
    """Reward, KL, entropy, length and refusals over the PPO steps, as small multiples on one x axis.

    Long runs show the raw values faintly and their moving mean over 5 steps strongly. A metric that the
    steps do not carry leaves its panel out.
    """
    title = "PPO, step by step"
    shown = [curve for curve in _CURVES if all(curve[0] in s for s in steps)]
    rows = -(-len(shown) // 2)
    with _drawing(steps and shown, title, 70 + 180 * rows) as canvas:
        panels = canvas.axes(rows, 2, sharex=True)
        for panel, (name, label, unit, colour) in zip(panels, shown, strict=False):
            _curve(panel, [float(s[name]) for s in steps], colour)
            panel.set_title(label, fontsize=9.5)
            panel.set_ylabel(unit)
        for unused in panels[len(shown) :]:
            unused.set_axis_off()
        for panel in panels[-2:]:
            panel.set_xlabel("PPO step")
        canvas.headline()
        canvas.figure.align_ylabels()
    return canvas.svg


def _curve(axes: Axes, values: Sequence[float], colour: str) -> None:
    steps = range(1, len(values) + 1)
    smooth = len(values) >= _SMOOTHED_FROM
    marker = "" if smooth else "o"
    axes.plot(steps, values, marker=marker, color=colour, alpha=0.3 if smooth else 1, linewidth=1)
    if smooth:
        axes.plot(steps, moving_mean(values, _WINDOW), color=colour)
    axes.margins(x=0.03, y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def calibration(
    bins: Sequence[Numbers],
    title: str = "Calibration of the reward model",
    truth: str = "Preferred by the judge (%)",
) -> str:
    """A reliability diagram with the number of pairs in each bin.

    Args:
        bins: `predicted` and `observed` as shares of 1, and `n`.
    """
    with _drawing(bins, title, 400) as canvas:
        top, bottom = canvas.axes(2, 1, sharex=True, height_ratios=(3.2, 1))
        predicted, observed, counts = ([b[name] for b in bins] for name in ("predicted", "observed", "n"))
        top.plot(
            [0, 1], [0, 1], linestyle=(0, (3, 3)), color=ink.MUTED, linewidth=1, label="perfectly calibrated"
        )
        top.plot(predicted, observed, color=ink.ACCENT, alpha=0.45)
        most = max(counts)
        for x, y, n in zip(predicted, observed, counts, strict=True):
            top.plot(x, y, "o", color=ink.ACCENT, markersize=4 + 6 * (n / most) ** 0.5, mec=ink.PAPER, mew=1)
        top.legend(loc="best", labelcolor=ink.MUTED)  # where no point lies
        top.set_title(title)
        top.set_ylabel(truth)
        top.set_ylim(0, 1)
        top.set_xlim(0, 1)
        bottom.bar(predicted, counts, width=0.05, color=ink.ACCENT, alpha=0.55)
        bottom.set_ylabel("Pairs")
        bottom.set_xlabel("Predicted preference (%)")
        bottom.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        top.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        bottom.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        canvas.figure.align_ylabels()
    return canvas.svg


def ratings(found: Sequence[Numbers]) -> str:
    """Bradley-Terry ratings of the models with their intervals, a panel for each set of prompts.

    Args:
        found: `model`, `on`, `rating` and `ci95` in nats.
    """
    title = "Ratings from pairwise comparisons"
    sets = [on for on in SETS if any(r["on"] == on for r in found)]
    with _drawing(sets, title, 265) as canvas:
        panels = canvas.axes(1, len(sets), sharex=True, sharey=True)
        for panel, on in zip(panels, sets, strict=True):
            rows = {r["model"]: r for r in found if r["on"] == on}
            _rating_panel(panel, rows)
            panel.set_title(SETS[on], fontsize=9.5)
            panel.set_xlabel("Rating (nats; mean 0)")
        canvas.headline()
    return canvas.svg


def _colour(model: str) -> str:
    return _COLOURS.get(model, ink.MUTED)


def _rating_panel(axes: Axes, rows: Mapping[str, Numbers]) -> None:
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=ink.MUTED, linewidth=1, linestyle=(0, (3, 3)))
    models = [model for model in MODELS if model in rows]
    for place, model in enumerate(models):
        rating, (low, high) = rows[model]["rating"], rows[model]["ci95"]
        axes.plot([low, high], [place, place], color=_colour(model), linewidth=2.4, solid_capstyle="round")
        axes.plot(rating, place, "o", color=_colour(model), markersize=9, mec=ink.PAPER, mew=1.5)
        _note(axes, f"{rating:+.2f}".replace("-", "−"), (rating, place), (0, 9), ha="center")
    axes.set_yticks(range(len(models)), [MODELS[m] for m in models], color=ink.INK)
    axes.set_ylim(len(models) - 0.5, -0.75)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.12)


def _with_intervals(
    axes: Axes, x: Sequence[float], y: Sequence[float], intervals: Sequence[Sequence[float]], colour: str
) -> None:
    for at, (low, high) in zip(x, intervals, strict=True):
        axes.plot([at, at], [low, high], color=colour, linewidth=2.4, solid_capstyle="round")
    axes.plot(x, y, "o", color=colour, markersize=9, mec=ink.PAPER, mew=1.5, zorder=4)


def _chance(axes: Axes, words: str) -> None:
    axes.axhline(0.5, color=ink.MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate(
        words,
        (1, 0.5),
        (-2, -5),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top",
        color=ink.MUTED,
        fontsize=8.5,
    )


def _note(
    axes: Axes, words: str, at: tuple[float, float], offset: tuple[float, float], ha: str = "left"
) -> None:
    # A plate in the page's colour keeps the words readable where a line runs behind them.
    plate = {"facecolor": ink.PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    axes.annotate(
        words, at, offset, textcoords="offset points", ha=ha, color=ink.INK, fontsize=9, zorder=5, bbox=plate
    )
