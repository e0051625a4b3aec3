"""Matplotlib figures as SVG that takes its colours from the page's style sheet.

A figure is drawn in sentinel colours, each of which then becomes a CSS variable: one drawing serves a
light page, a dark one and a printed one. Text stays text. The same numbers give the same bytes.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010201", "#010202", "#010203", "#010204"
BASE, SL, RL, ACCENT = "#010205", "#010206", "#010207", "#010208"

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    BASE: "--base",
    SL: "--sl",
    RL: "--rl",
    ACCENT: "--accent",
}

_WIDTH_INCHES = 640 / 96
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelpad": 6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "legend.frameon": False,
}


class Canvas:
    """A figure in the making; `svg` holds the drawing once the `drawing` block is left."""

    def __init__(self, title: str, height: int) -> None:
        self.title = title
        self.figure = Figure(figsize=(_WIDTH_INCHES, height / 96), layout="constrained")
        self.svg = ""

    def axes(self, rows: int = 1, columns: int = 1, **options: Any) -> list[Axes]:
        """The panels in reading order, without vertical grid lines."""
        grid = self.figure.subplots(rows, columns, squeeze=False, **options)
        panels: list[Axes] = list(grid.flat)
        for panel in panels:
            panel.grid(visible=False, axis="x")
        return panels

    def headline(self) -> None:
        """Set the title over several panels."""
        self.figure.suptitle(self.title, x=0.01, ha="left", fontsize=11, fontweight="bold")


@contextmanager
def drawing(title: str, height: int) -> Iterator[Canvas]:
    """Draw in the house style; 640 CSS pixels wide and `height` high, or scaled to the page.

    `title` names the drawing to a screen reader and keeps its internal names apart from others on the page.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        canvas = Canvas(title, height)
        yield canvas
        canvas.svg = _svg(canvas)


def _svg(canvas: Canvas) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(canvas.figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>\s*", "", drawn, flags=re.DOTALL)
    # Ids that nothing refers to would stand twice on a page of several figures.
    drawn = re.sub(r'(<g) id="[^"]*"', r"\1", drawn)
    drawn = re.sub(r"font-family: [^;\"]*", "font-family: inherit", drawn)
    drawn = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', _head(canvas.title), drawn, count=1)
    for sentinel, variable in _VARIABLES.items():
        drawn = drawn.replace(sentinel, f"var({variable})")
    return drawn.strip()


def _head(title: str) -> str:
    name = escape(title).replace("\\", "")
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return rf'<svg {names} \1 role="img" aria-label="{name}"><title>{name}</title>'
