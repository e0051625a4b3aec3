"""Harmlessness by the number of revisions, and with a critique before each revision or without one.

Run: python experiments/revisions.py [--runs runs/experiments] [--data ../shared/data]

Bai et al. 2022, sec. 3.4 (the preference model's score rises with every revision) and 3.5 (a critique helps
small models). Of each prompt the last usable text counts: how often a classifier that people's labels taught
(human_harm.py) finds it less harmful than the first answer, how many are refusals, and how many revisions
the filters let through.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import human_harm
import lab
from lab import BLUE, ORANGE, Share, share

from solon.records import Written
from solon.refusal import is_refusal
from solon.store import read_rows

ROUNDS = 4
KINDS = {"critique": True, "direct": False}
COLOURS = {"critique": BLUE, "direct": ORANGE}
LABELS = {"critique": "critique, then revision", "direct": "direct revision"}


def main() -> None:
    options = lab.options(__doc__)
    folders = {
        name: lab.solon_run(
            "revisions", options.runs / f"revisions-{name}", "revise", revise__critique=wanted
        )
        for name, wanted in KINDS.items()
    }
    classifier = human_harm.fitted(human_harm.labelled(options.data))
    found = {name: measured(classifier, folder) for name, folder in folders.items()}
    lab.keep("revisions", {name: plain(figures) for name, figures in found.items()})
    draw(found)


def draw(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Both shares by the number of revisions, a line for each kind."""
    with lab.drawing("revisions", panels=2) as (left, right):
        for name, figures in found.items():
            lab.draw_less_harmful(
                left, range(ROUNDS + 1), figures["less_harmful"], COLOURS[name], LABELS[name]
            )
            lab.draw_shares(right, range(ROUNDS + 1), figures["refused"], COLOURS[name], LABELS[name])
        right.set_ylabel("refusals (%)")
        left.legend(frameon=False)
        for axes in (left, right):
            axes.set_xlabel("revisions")
            axes.set_xticks(range(ROUNDS + 1))


def measured(classifier: human_harm.Classifier, folder: Path) -> dict[str, Any]:
    """Of each round: the shares of texts that are less harmful than the first ones, and of refusals."""
    rounds = lab.texts_by_round(folder, ROUNDS)
    first = rounds[0]
    pairs = [[(t.prompt, t.text, first[i].text) for i, t in now.items()] for now in rounds]
    return {
        "less_harmful": [share(classifier.less_harmful(p)) for p in pairs],
        "refused": [share([float(is_refusal(t.text)) for t in now.values()]) for now in rounds],
        "filters": filtered(folder),
    }


def filtered(folder: Path) -> dict[str, int]:
    """How many revisions each filter rejected, of all candidates; `usable` are those that passed."""
    rows = read_rows(folder / "03_revise" / "rows.parquet", Written)
    return dict(Counter(r.unusable or "usable" for r in rows if r.kind == "revision"))


def plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [asdict(s) if isinstance(s, Share) else s for s in found] if isinstance(found, list) else found
        for name, found in figures.items()
    }


if __name__ == "__main__":
    main()
