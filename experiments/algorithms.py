"""SFT alone, DPO, RLOO and PPO on the plane of harmlessness and helpfulness, at equal prompts and episodes.

Run: python experiments/algorithms.py RUN    (a finished run, such as runs/tiny-7)

Goes on from a copy of the run, beside it as RUN-algorithms. All start from its SL model; PPO and RLOO have
the same reward model, prompts and number of episodes, DPO the labels behind it. A point is a model's
Bradley-Terry rating against all others, by the judge of the evaluation: on held-out red-team prompts to the
right, on ordinary ones upwards, in Elo points above base; the intervals are of that difference. Bai et al.
2022, fig. 2, draws this plane.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from lab import BLUE, GREY, ORANGE, RESAMPLES, SEED, drawing, keep, run_named, solon_run

from solon.records import Verdict
from solon.report.statistics import ELO_PER_NAT, bootstrap_ratings
from solon.saving import saving
from solon.stages.evaluate import SETS, wins_by_prompt
from solon.store import read_rows

NAMES = {"base": "base", "sl": "SFT (SL-CAI)", "rl": "PPO", "rloo": "RLOO", "dpo": "DPO"}
SHARES = ("refusal_rate", "over_refusal_rate", "degenerate_rate")
PROMPTS = 150  # Of each kind: five models are ten comparisons of each
COLOURS = {"base": GREY, "sl": ORANGE, "rl": BLUE, "rloo": "#4f8f5b", "dpo": "#7a5aa8"}


def main() -> None:
    run = run_named(__doc__)
    folder = run.with_name(f"{run.name}-algorithms")
    if not folder.exists():
        with saving(folder) as whole:
            shutil.copytree(run, whole)
    changes = {
        "reinforce__algorithm": "[ppo,rloo,dpo]",
        "evaluate__prompts": PROMPTS,
        "evaluate__helpful": PROMPTS,
    }
    solon_run(run / "recipe.yaml", folder, **changes)
    metrics = json.loads((folder / "09_evaluate" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    verdicts = list(read_rows(folder / "09_evaluate" / "rows.parquet", Verdict))
    found = measured(verdicts, metrics["models"])
    keep("algorithms", found)
    with drawing("algorithms") as (axes,):
        for name, figures in found.items():
            (x, y), style = (figures["red_team"], figures["helpful"]), COLOURS[name]
            spread = {"xerr": _spread(x), "yerr": _spread(y)}
            place = (x["elo"], y["elo"])
            axes.errorbar(*place, **spread, fmt="o", color=style, elinewidth=0.8, label=NAMES[name])
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        axes.set_xlabel("harmlessness (Elo points)")
        axes.set_ylabel("helpfulness (Elo points)")


def measured(
    verdicts: Sequence[Verdict], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Each model's ratings in Elo points above base's, and its shares of refusals and degenerate answers.

    `models` tells those shares, as the stage's metrics do.
    """
    names = list(models)
    found: dict[str, dict[str, Any]] = {
        name: {share: models[name][share] for share in SHARES} for name in names
    }
    for on in SETS:
        wins = wins_by_prompt(verdicts, names, on)
        ratings, intervals = bootstrap_ratings(wins, RESAMPLES, SEED, zero=names.index("base"))
        for name, rating, interval in zip(names, ratings, intervals, strict=True):
            found[name][on] = {"elo": ELO_PER_NAT * rating, "ci95": (ELO_PER_NAT * interval).tolist()}
    return found


def _spread(figure: dict[str, Any]) -> list[list[float]]:
    low, high = figure["ci95"]
    return [[max(0.0, figure["elo"] - low)], [max(0.0, high - figure["elo"])]]


if __name__ == "__main__":
    main()
