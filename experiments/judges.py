"""Judges beside each other: multiple choice, chain of thought, likelihood, and the linear probe.

Run: python experiments/judges.py

Each says which answer of the shipped constitution's evaluation comparisons is the better one. The probe is
taught by these comparisons and tested on the folds that it has not seen; the others are asked as they are.
Bai et al. 2022, sec. 4.4 and fig. 4: with thought the judge is better, and small models near chance.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict

from lab import BLUE, GREY, ORANGE, Share, drawing, harmless, keep, share_of

from solon.feedback.judging import asked_of, open_bench
from solon.feedback.measure import ask_own
from solon.feedback.opening import open_judge
from solon.judge_settings import JudgeKind

KINDS: tuple[JudgeKind, ...] = ("choice", "chain_of_thought", "likelihood", "linear_probe")
COLOURS = {"choice": GREY, "chain_of_thought": GREY, "likelihood": ORANGE, "linear_probe": BLUE}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found = {kind: measured(kind) for kind in KINDS}
    keep("judges", {kind: asdict(figure) for kind, figure in found.items()})
    draw(found)


def draw(found: Mapping[str, Share]) -> None:
    with drawing("judges") as (axes,):
        for place, (kind, figure) in enumerate(reversed(found.items())):
            spread = [[100 * (figure.mean - figure.low)], [100 * (figure.high - figure.mean)]]
            axes.errorbar(100 * figure.mean, place, xerr=spread, fmt="o", color=COLOURS[kind], capsize=2)
        axes.set_yticks(range(len(found)), [kind.replace("_", " ") for kind in reversed(found)])
        axes.axvline(50, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_xlim(30, 100)
        axes.set_ylim(-0.5, len(found) - 0.5)
        axes.set_xlabel("right on the constitution's own comparisons (%)")


def measured(kind: JudgeKind) -> Share:
    """Of the comparisons that the judge could score: the share it gets right, with Wilson's interval."""
    asked = asked_of("embedded", kind, harmless(), "evaluation")
    bench = open_bench(asked)
    results = ask_own(open_judge(kind, bench), bench.items(), asked.seed)
    said = [r.p_better for r in results if r.p_better is not None]
    right = sum(0.5 if p == 0.5 else float(p > 0.5) for p in said)
    return share_of(right, len(said))


if __name__ == "__main__":
    main()
