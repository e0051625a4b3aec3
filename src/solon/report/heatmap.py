"""The report's heat map of the principles' agreement: numbers in, one SVG string out, as in `plots`.

Loads Matplotlib, so it is imported only where a report is written.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from solon.report import ink

TITLE = "Agreement between principles"
# At most this strong, so that the page's ink stays readable on every cell of a light and of a dark page.
_STRONGEST = 0.55
_VALUES_UP_TO = 20
_LONGEST = 26
# Fewer principles than these leave the right side empty: their cells would be bars.
_COLUMNS = 9

Share = float | None


def agreement(names: Sequence[str], shares: Sequence[Sequence[Share]]) -> str:
    """How often each two principles prefer the same answer, a row and a column for each principle.

    Up to 20 principles have their values written in the cells.

    Args:
        names: of the K principles.
        shares: [K][K] shares of 1; None where two principles have no pair in common. Of a principle with
            itself there is nothing to show, so the diagonal is ignored.

    Raises:
        ValueError: fewer than two principles: nothing to draw.
    """
    if len(names) < 2:
        raise ValueError(f"{TITLE}: nothing to draw.")
    few = len(names) <= _VALUES_UP_TO
    size, rows = (8.5, 27 * len(names)) if few else (7, 15 * len(names))
    shown = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
    slanted = round(0.6 * size * max(len(name) for name in shown))
    with ink.drawing(TITLE, 75 + rows + slanted) as canvas:
        key, cells = canvas.axes(2, 1, height_ratios=(18, rows))
        _key(key)
        for axes in (key, cells):
            axes.grid(visible=False)
            axes.spines["bottom"].set_visible(False)
        for y, shares_of_one in enumerate(shares):
            for x, share in enumerate(shares_of_one):
                _cell(cells, x, y, share, written=few)
        _names(cells, shown, size)
    return canvas.svg


def _cell(axes: Axes, x: int, y: int, share: Share, written: bool) -> None:
    if x == y:
        _square(axes, x, y, ink.GRID, 1)
        return
    if share is not None:
        _square(axes, x, y, *_shade(share))
    if written:
        words, colour = ("–", ink.MUTED) if share is None else (f"{100 * share:.0f}", ink.INK)
        axes.text(x, y, words, ha="center", va="center_baseline", color=colour, fontsize=8)


def _shade(share: float) -> tuple[str, float]:
    """Colour and strength: no colour at one half, and one colour to either side of it."""
    return ink.ACCENT if share > 0.5 else ink.RL, _STRONGEST * abs(2 * share - 1)


def _square(axes: Axes, x: float, y: float, colour: str, strength: float) -> None:
    # A gap between the cells, not an edge: an edge in the page's colour would be seen through.
    place, size = (x - 0.47, y - 0.47), 0.94
    axes.add_patch(Rectangle(place, size, size, facecolor=(colour, strength), linewidth=0, clip_on=False))


def _names(axes: Axes, names: Sequence[str], size: float) -> None:
    places = range(len(names))
    axes.set_xlim(-0.5, max(len(names), _COLUMNS) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(length=0, pad=3)
    axes.set_yticks(places, names, color=ink.INK, fontsize=size)
    axes.set_xticks(
        places, names, color=ink.INK, fontsize=size, rotation=45, ha="right", rotation_mode="anchor"
    )


def _key(axes: Axes) -> None:
    """The scale of the colours, from 0 to 100 % in steps of ten."""
    axes.set_title(TITLE)
    axes.set_axis_off()
    axes.set_xlim(-8.5, 24.5)
    axes.set_ylim(0.5, -0.5)
    for step in range(11):
        _square(axes, step, 0, *_shade(step / 10))
    for place, side, words in (
        (-0.9, "right", "never the same: 0 %"),
        (10.9, "left", "100 %: always the same"),
    ):
        axes.text(place, 0, words, ha=side, va="center_baseline", color=ink.MUTED, fontsize=8.5)
