"""How good are the rows that fine-tuning learns from?

Run: python experiments/data_quality.py RUN [--read 50]

Of a run's revisions: the share that each filter rejects, what the best of n is worth to the judge, and the
near-duplicates among the rows that were trained on. `--read` prints random ones of these, for people to read.
"""

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from lab import keep

from solon.recipe import load_recipe
from solon.records import Written
from solon.stages.finetune import training_pairs
from solon.store import read_rows
from solon.text import drop_near_duplicates

SIMILAR, SEED = 0.6, 0


@dataclass(frozen=True)
class BestOf:
    """With n candidates a round: how often one is usable, and the judge's P(better than the first answer) of
    the best of those that are."""

    n: int
    usable: float
    better: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--read", type=int, default=0, metavar="N", help="print N of the rows")
    options = parser.parse_args()
    recipe, _ = load_recipe(options.run / "recipe.yaml")
    rows = list(read_rows(options.run / "03_revise" / "rows.parquet", Written))
    revisions = [row for row in rows if row.kind == "revision"]
    pairs = [(prompt, text) for prompt, text, _ in training_pairs(rows, recipe.finetune)]
    keep("data_quality", figures(revisions, [text for _, text in pairs]))
    for prompt, text in random.Random(SEED).sample(pairs, min(options.read, len(pairs))):
        print(f"\n> {prompt}\n{text}")


def figures(revisions: Sequence[Written], trained: Sequence[str]) -> dict[str, Any]:
    reasons = Counter(row.unusable or "usable" for row in revisions)
    return {
        "revisions": len(revisions),
        "shares": {reason: count / len(revisions) for reason, count in reasons.most_common()},
        "best_of": [vars(found) for found in best_of(revisions)],
        "trained_on": len(trained),
        "near_duplicates": len(trained) - len(drop_near_duplicates(list(trained), SIMILAR)),
    }


def best_of(revisions: Sequence[Written]) -> Iterator[BestOf]:
    """For every n up to the candidates that were sampled: over all choices of n of each round's."""
    rounds = defaultdict[tuple[str, int], list[Written]](list)
    for row in revisions:
        rounds[row.prompt_id, row.round].append(row)
    for n in range(1, max(map(len, rounds.values())) + 1):
        chosen = [some for candidates in rounds.values() for some in combinations(candidates, n)]
        values = [[r.better for r in some if r.unusable is None and r.better is not None] for some in chosen]
        best = [max(value) for value in values if value]
        yield BestOf(n, len(best) / len(chosen), mean(best))


if __name__ == "__main__":
    main()
