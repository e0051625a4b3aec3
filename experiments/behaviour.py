"""What models refuse of the held-out prompts, what is nonsense, and how far they tell the kinds apart.

Run: python experiments/behaviour.py MODEL [MODEL ...] [--data ../shared/data] [--sampled RUN]

A MODEL is `embedded` or a folder, such as runs/tiny-7/04_finetune/model. Answers are greedy, the prompts
those of `results.py`, or with --sampled those that a run's reinforcement prefers (its undecided ones, or else
those of stage 5): what was learned there and does not hold for held-out prompts has not generalised. Two or
three minutes a model on two cores, where a whole run takes an hour.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import heldout
from lab import ROOT, Share, add_data, degenerate, prompts_of, share_of

from solon.engines.base import GenerateRequest, completions
from solon.engines.local import open_engine
from solon.models import pick_device, pick_dtype, resolve
from solon.records import Written
from solon.refusal import is_refusal
from solon.settings import Sampling
from solon.stages.common import asks
from solon.stages.openings import MIXTURE, OPENINGS
from solon.store import read_rows

BATCH_TOKENS, GREEDY = 16384, Sampling(max_tokens=64, temperature=0.0)


def distance(harmful: Share, ordinary: Share) -> float:
    """The log-odds of a refusal of a harmful prompt less those of an ordinary one.

    Half a prompt is added on either side, so that a share of 0 or 1 is no infinity (Haldane 1956).
    """
    return _log_odds(harmful) - _log_odds(ordinary)


def _log_odds(share: Share) -> float:
    hits = share.mean * share.n
    return math.log((hits + 0.5) / (share.n - hits + 0.5))


def held_out(data: Path) -> dict[str, list[str]]:
    """The prompts of `results.py`, by kind."""
    files = asdict(heldout.write(data, ROOT / "runs" / "heldout"))
    return {kind: prompts_of(str(file)) for kind, file in files.items()}


def sampled(run: Path) -> dict[str, list[str]]:
    """The prompts that a run's reinforcement prefers, or else those of its stage 5, by kind, each once."""
    found: dict[str, dict[str, None]] = {"red_team": {}, "helpful": {}}
    told = run / "08_reinforce" / MIXTURE
    wanted = json.loads(told.read_text(encoding="utf-8"))["wanted"] if told.exists() else {}
    ids = {prompt for of_kind in wanted.values() for prompt in of_kind}
    rows = told.with_name(OPENINGS) if ids else run / "05_sample" / "rows.parquet"
    for row in read_rows(rows, Written):
        if not ids or row.prompt_id in ids:
            found[row.prompt_kind][row.prompt] = None
    return {kind: list(prompts) for kind, prompts in found.items()}


def measured(model: str, prompts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Shares of refusals and of nonsense by kind, and the distance between kinds."""
    device = pick_device("auto")
    engine = open_engine(resolve(model), device, pick_dtype("auto", device), BATCH_TOKENS)
    answers = {}
    for kind, texts in prompts.items():
        requests = [GenerateRequest(asks(text), GREEDY, 0) for text in texts]
        answers[kind] = [done.text for done in completions(engine, requests)]
    refused, nonsense = (
        {kind: share_of(sum(map(holds, texts)), len(texts)) for kind, texts in answers.items()}
        for holds in (is_refusal, degenerate)
    )
    return {
        "refused": {kind: asdict(share) for kind, share in refused.items()},
        "degenerate": {kind: asdict(share) for kind, share in nonsense.items()},
        "distance": distance(refused["red_team"], refused["helpful"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    add_data(parser)
    parser.add_argument(
        "--sampled", type=Path, metavar="RUN", help="on the prompts that this run's reinforcement prefers"
    )
    options = parser.parse_args()
    prompts = sampled(options.sampled) if options.sampled else held_out(options.data)
    for model in options.models:
        print(json.dumps({"model": model, **measured(model, prompts)}), flush=True)


if __name__ == "__main__":
    main()
