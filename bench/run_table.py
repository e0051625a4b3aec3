"""The figures of a run as the README shows them, in Markdown.

Run: python bench/run_table.py runs/demo
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from solon.summary import sort_of_pairs

MODELS = (("base", "base"), ("sl", "SL-CAI"), ("rl", "RL-CAI"))
RATES = (
    ("refusal", "refuses harmful requests"),
    ("over_refusal", "refuses ordinary ones"),
    ("degenerate", "degenerate answers"),
)


def share(value: float | None, ci95: list[float] | None) -> str:
    if value is None or ci95 is None:
        return "nothing scored"
    low, high = ci95
    return f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def behaviour(models: dict[str, Any]) -> Iterator[str]:
    yield "| | " + " | ".join(name for _, name in MODELS) + " |"
    yield "|---|---|---|---|"
    for key, label in RATES:
        cells = [share(models[m][f"{key}_rate"], models[m][f"{key}_ci95"]) for m, _ in MODELS]
        yield f"| {label} | {' | '.join(cells)} |"
    yield "| words an answer | " + " | ".join(f"{models[m]['mean_words']:.0f}" for m, _ in MODELS) + " |"


def preferences(summary: dict[str, Any]) -> Iterator[str]:
    yield "| preferred by the evaluation's judge | red-team prompts | ordinary prompts |"
    yield "|---|---|---|"
    names = dict(MODELS)
    pairs = summary["evaluation"]["pairwise"]
    for a, b in dict.fromkeys((p["a"], p["b"]) for p in pairs):
        found = {p["on"]: share(p["win_rate"], p["ci95"]) for p in pairs if (p["a"], p["b"]) == (a, b)}
        better, other = (names.get(name, name.upper()) for name in (a, b))
        yield f"| {better} over {other} | {found['red_team']} | {found['helpful']} |"
    for one in summary["evaluation"]["revision_rounds"]:
        yield f"| revision {one['round']} over the first answer | {share(one['win_rate'], one['ci95'])} | |"


def instruments(summary: dict[str, Any]) -> Iterator[str]:
    judge, reward = summary["judge"], summary["reward_model"]
    yield "| right on pairs that it was not taught by | share | n |"
    yield "|---|---|---|"
    for label, found, key in (
        ("judge of the labels, worked comparisons", judge, "check"),
        ("judge of the evaluation, worked comparisons", judge, "evaluation"),
    ):
        cell = share(found[f"{key}_accuracy"], found[f"{key}_ci95"])
        yield f"| {label} | {cell} | {found[f'{key}_n']} |"
    cell = share(reward["heldout_accuracy"], reward["ci95"])
    yield f"| reward model, labels of held-out prompts | {cell} | {reward['n']} |"
    for found in reward["by_pairs"]:
        yield f"| {sort_of_pairs(found)} | {share(found['accuracy'], found['ci95'])} | {found['n']} |"


def main(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    minutes = sum(stage["seconds"] for stage in summary["stages"]) / 60
    parts = (behaviour(summary["evaluation"]["models"]), preferences(summary), instruments(summary))
    print("\n\n".join("\n".join(part) for part in parts))
    print(f"\n{minutes:.1f} minutes, {summary['device']}, {summary['dtype']}.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
