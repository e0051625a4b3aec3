"""Reward against wall time of two PPO runs, with marks where both have gone equally far from their start."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Steps = Sequence[dict[str, float]]

WINDOW = 5  # Steps in a running mean: a step's sixteen answers are noisy
LEVELS = (1.0, 2.0, 4.0, 8.0, 16.0)  # Nats an answer
COLOURS = {"Solon": "#1b6ca8", "TRL 1.12.0": "#c0561f"}


@dataclass(frozen=True)
class Point:
    """Where a run stands: wall time since its training began, and running means of score and KL."""

    seconds: float
    score: float
    kl: float


def points(steps: Steps) -> list[Point]:
    """The run, each figure the mean of the last `WINDOW` steps."""
    found = []
    for end in range(1, len(steps) + 1):
        part = steps[max(0, end - WINDOW) : end]
        score, kl = (sum(step[name] for step in part) / len(part) for name in ("score", "kl"))
        found.append(Point(steps[end - 1]["elapsed"], score, kl))
    return found


def at_equal_kl(solon: Steps, trl: Steps) -> Iterator[tuple[float, Point, Point]]:
    """For every level of KL that both runs reach: where each first did."""
    runs = points(solon), points(trl)
    for level in LEVELS:
        ours, theirs = (_reached(run, level) for run in runs)
        if ours and theirs:
            yield level, ours, theirs


def _reached(run: Sequence[Point], level: float) -> Point | None:
    return next((point for point in run if point.kl >= level), None)


def draw(solon: Steps, trl: Steps, file: Path) -> None:
    """Write the figure."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Axes = figure.subplots()
    for (name, colour), steps in zip(COLOURS.items(), (solon, trl), strict=True):
        run = points(steps)
        axes.plot([p.seconds / 60 for p in run], [p.score for p in run], color=colour, label=name)
        _mark(axes, run, colour)
    axes.set_xlabel("wall time, minutes")
    axes.set_ylabel(f"mean score of the last {WINDOW} steps")
    axes.legend(frameon=False, title="dots: KL reached, nats an answer", alignment="left")
    axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None})


def _mark(axes: Axes, run: Sequence[Point], colour: str) -> None:
    for level in LEVELS:
        place = _reached(run, level)
        if place:
            axes.plot(place.seconds / 60, place.score, "o", color=colour)
            axes.annotate(
                f"{level:g}",
                (place.seconds / 60, place.score),
                (4, 4),
                textcoords="offset points",
                color=colour,
            )
