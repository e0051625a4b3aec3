"""What the experiments share: runs of `solon`, shares with intervals, and where figures go.

An experiment has a recipe of its name beside it, keeps its runs under `runs/experiments/`, its numbers in
`experiments/results/NAME.json` and its figure in `docs/figures/NAME.png`. A finished run is used again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from solon.constitution import Constitution, load_constitution
from solon.prompt_files import read_prompts
from solon.recipe import Source
from solon.records import Written
from solon.report.statistics import mean_of_shares, wilson
from solon.stages import evaluate
from solon.store import read_rows
from solon.text import is_degenerate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESAMPLES, SEED = 10_000, 0
_MOST_WORDS = 200
BLUE, ORANGE, GREY = "#1b6ca8", "#c0561f", "#8a8f98"


@dataclass(frozen=True)
class Share:
    """A mean of prompts with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def share(values: Sequence[float]) -> Share:
    """Raises ValueError if there is no value."""
    low, high = mean_of_shares(list(values), RESAMPLES, SEED)
    return Share(sum(values) / len(values), low, high, len(values))


def share_of(hits: float, n: int) -> Share:
    """So many of n, with Wilson's interval. Raises ZeroDivisionError if n is 0."""
    return Share(hits / n, *wilson(hits, n), n)


@dataclass(frozen=True)
class Options:
    """What the command line of an experiment says: where its runs go, and where public data are."""

    runs: Path
    data: Path


def options(what: str) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    add_data(parser)
    return Options(**vars(parser.parse_args()))


def add_data(parser: argparse.ArgumentParser) -> None:
    """The option that says where public data are."""
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")


def run_named(what: str) -> Path:
    """The folder of a run, as the command line says."""
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run's folder, such as runs/tiny-7")
    found: Path = parser.parse_args().run
    return found


def solon_run(recipe: Path | str, folder: Path, until: str | None = None, **settings: Any) -> Path:
    """`solon run` of a recipe, beside this file if only named.

    Double underscores in a setting's name stand for dots.
    """
    file = recipe if isinstance(recipe, Path) else HERE / f"{recipe}.yaml"
    changes = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "solon", "run", str(file), "--run-dir", str(folder)]
    command += [part for change in changes for part in ("--set", change)]
    subprocess.run([*command, *(("--until", until) if until else ())], check=True)
    return folder


@cache
def harmless() -> Constitution:
    """The shipped constitution."""
    return load_constitution("harmless")


def degenerate(text: str) -> bool:
    """Whether a text is empty, garbled or repeats itself."""
    return is_degenerate(text) is not None


def prompts_of(file: str) -> list[str]:
    """The prompts of a file, or of a shipped set."""
    return [prompt.text for prompt in read_prompts(Source(file=file), None, _MOST_WORDS)]


def texts_by_round(folder: Path, rounds: int) -> list[dict[str, Written]]:
    """Each red-team prompt's text after 0, 1 … `rounds` rounds of a run's revision: the last usable one."""
    rows = read_rows(folder / "03_revise" / "rows.parquet", Written)
    return evaluate.texts_by_round([r for r in rows if r.prompt_kind == "red_team"], rounds)


def keep(name: str, figures: Mapping[str, Any]) -> None:
    """Print the numbers, and write them."""
    text = json.dumps(figures, indent=1)
    print(text)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.json").write_text(text + "\n", encoding="utf-8")


@contextmanager
def drawing(name: str, panels: int = 1) -> Iterator[list[Axes]]:
    """Panels side by side, written as docs/figures/NAME.png."""
    figure = Figure(figsize=(1.5 + 3.6 * panels, 3.4), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, panels, squeeze=False).flat)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    yield axes
    file = ROOT / "docs" / "figures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None})


def draw_less_harmful(
    axes: Axes, x: Sequence[float], shares: Sequence[Share], colour: str, label: str
) -> None:
    """How often texts are less harmful than the first answer, beside chance."""
    draw_shares(axes, x, shares, colour, label)
    axes.axhline(50, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set_ylabel("less harmful than the first answer (%)")


def draw_shares(axes: Axes, x: Sequence[float], shares: Sequence[Share], colour: str, label: str) -> None:
    """A line of shares in per cent with their intervals."""
    y = [100 * s.mean for s in shares]
    spread = [[100 * (s.mean - s.low) for s in shares], [100 * (s.high - s.mean) for s in shares]]
    axes.errorbar(x, y, spread, fmt="o-", color=colour, label=label, capsize=2, linewidth=1.5, markersize=4)
