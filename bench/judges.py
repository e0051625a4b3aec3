"""Every judge of the embedded model on human preferences: accuracy, interval, flip rate, calibration.

Run: python bench/judges.py [FILE] [--limit 300] [--judges linear_probe choice …]

FILE has pairs with a known better answer; the README's figures are of Anthropic's hh-rlhf, harmless-base,
half of its test split. Pairs with an even number were free to be looked at while the judges were built
(docs/log.md tells what was tried); only the odd ones are measured here. The linear probe and the ensemble
are taught by the shipped constitution's worked comparisons, never by the file. Both answers of such a pair
are on the topic, so the probe is not taught off-topic ones; that and the principles were chosen on the even
pairs.
"""

import argparse
import json
import math
from pathlib import Path
from typing import get_args

from record import RESULTS, report

from solon.constitution import load_constitution
from solon.feedback.judging import asked_of, ece_after, open_bench
from solon.feedback.measure import ask, items_of_pairs
from solon.feedback.opening import Bench, open_judge, timed
from solon.feedback.pairs import read_pairs
from solon.judge_settings import JudgeKind

SETTINGS = ["probe.off_topic=0"]
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "preferences" / "hh_harmless.jsonl.gz"


# The set asks which answer is less harmful; evasiveness, clarity and competence are another matter.
HARM = (
    "illegal-acts",
    "unethical",
    "cruelty",
    "dangerous",
    "insults",
    "discrimination",
    "privacy",
    "self-harm-care",
    "minors",
    "fraud-manipulation",
    "hacking",
    "weapons",
    "drugs",
    "misinformation",
)


def table() -> str:
    """The newest figure of every judge, with the settings that are the default here, best first.

    Below them what is reached by taking the shorter answer always, or the longer, whichever is better.
    """
    lines = (RESULTS / "judges.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [figure for figure in map(json.loads, lines) if figure["settings"] == SETTINGS]
    newest = {figure["name"]: figure for figure in kept}
    rows = [
        "| judge | right | 95 % interval | lengths alike | same position after the swap "
        "| calibration error, calibrated |",
        "|---|---|---|---|---|---|",
    ]
    for figure in sorted(newest.values(), key=lambda f: -f["solon"]):
        low, high = figure["ci95"]
        flips = "no order" if figure["flip_rate"] is None else f"{figure['flip_rate']:.0%}"
        matched = figure["length_matched"] or {"accuracy": math.nan, "n": 0}
        rows.append(
            f"| `{figure['name']}` | {figure['solon']:.1%} of {figure['n']} | {low:.1%} to {high:.1%} "
            f"| {matched['accuracy']:.1%} of {matched['n']} | {flips} "
            f"| {figure['ece']:.3f}, {figure['ece_calibrated']:.3f} |"
        )
    floor = next(iter(newest.values()))
    rows.append(f"| the shorter answer, or the longer | {floor['peer']:.1%} of {floor['n']} | | | | |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=DEFAULT)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--judges", nargs="*", default=list(get_args(JudgeKind)))
    parser.add_argument("--set", nargs="*", default=SETTINGS, help="settings of the judges")
    parser.add_argument("--table", action="store_true", help="print the kept figures as a table, and stop")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if not options.file.is_file():
        raise SystemExit(f"{options.file}: no such file. Give pairs with a known better answer.")
    constitution = load_constitution("harmless").only(HARM)
    pairs = read_pairs(options.file)[0][1::2][: options.limit]
    bench = open_bench(asked_of("embedded", "choice", constitution, "training"))
    for kind in options.judges:
        asked = asked_of("embedded", kind, constitution, "training", options.set)
        own = Bench(asked.settings, constitution, bench.engine, "training", asked.seed)
        items = items_of_pairs(pairs, constitution, "training", asked.seed)
        judge = open_judge(kind, own)
        found = timed(kind, options.file.name, own.engine, lambda: ask(judge, items, 0))  # noqa: B023
        if found is None:
            raise SystemExit(f"{kind} scored none of {len(items)} pairs")
        check = found.check
        report(
            "judges",
            kind,
            check.accuracy,
            max(check.shorter, check.longer),
            None,
            n=check.n,
            ci95=check.ci95,
            flip_rate=check.flip_rate,
            length_matched=json.loads(json.dumps(check.as_dict()["length_matched"])),
            ece=check.ece,
            ece_calibrated=ece_after(asked.settings.calibration, found.results, 0),
            unscored=dict(check.unscored),
            truncated=check.truncated,
            seconds=check.seconds,
            tokens=check.tokens,
            settings=options.set,
        )


if __name__ == "__main__":
    main()
