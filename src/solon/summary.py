"""`summary.json`: what a run found, gathered from the stages' manifests.

The warnings come first in the report: a judge or a reward model whose interval includes chance taught
the later stages noise, and the reader must know before any other number.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from solon import __version__
from solon.constitution import Constitution
from solon.models import pick_device, pick_dtype
from solon.recipe import Recipe
from solon.records import PPO, Step
from solon.store import Manifest, read_rows, write_atomically

PROMPTS = {"all": "all prompts", "red_team": "red-team prompts", "helpful": "ordinary prompts"}
_FEW_USABLE = 0.25
_FEW_PAIRS = 10  # fewer say nothing of a sort of pairs, whatever their interval
_MANY_UNSCORED = 0.1
_CHECKED = (
    ("judge", "check", "the constitution's own comparisons"),
    ("judge", "file", "the check file"),
    ("evaluation's judge", "evaluation", "the constitution's own comparisons"),
    ("evaluation's judge", "evaluation_file", "the check file"),
)


def sort_of_pairs(found: Mapping[str, Any]) -> str:
    """Which held-out pairs of the reward model a part of its figures (`by_pairs`) is about."""
    across = ", a refusal of another prompt on one side" if found["crossed"] else ""
    return f"… on {PROMPTS[found['kind']]}{across}"


def write_summary(
    folder: Path, recipe: Recipe, constitution: Constitution, done: list[tuple[Manifest, bool]]
) -> dict[str, Any]:
    """Write and return the summary of the stages that are done; what has not run is absent."""
    device = pick_device(recipe.device)
    metrics = {manifest.stage: manifest.metrics for manifest, _ in done}
    summary: dict[str, Any] = {
        "solon": __version__,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "model": recipe.model,
        "device": device,
        "dtype": str(pick_dtype(recipe.dtype, device)).removeprefix("torch."),
        "constitution": {
            "name": constitution.name,
            "version": constitution.version,
            "digest": constitution.digest,
        },
        "stages": [
            {
                "name": m.stage,
                "seconds": m.seconds,
                "rows": m.rows,
                "tokens": m.tokens,
                "reused": reused,
            }
            for m, reused in done
        ],
        **_figures(metrics, folder),
    }
    summary["warnings"] = warnings(summary)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _figures(metrics: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "red_team" in metrics:
        figures["prompts"] = metrics["red_team"]
    if "revise" in metrics:
        figures |= metrics["revise"]
    if "preflight" in metrics:
        figures["judge"] = _judge(metrics)
    if "label" in metrics:
        figures["unscored"] = metrics["label"]["unscored"]
        figures["dropped"] = metrics["label"]["dropped"]
    if "effects" in metrics.get("label", {}):
        figures["principles"] = metrics["label"]["effects"]
    if "reward" in metrics:
        figures["reward_model"] = metrics["reward"]
    if "ppo" in metrics.get("reinforce", {}).get("algorithms", ()):
        figures["ppo"] = _ppo(metrics["reinforce"], folder)
    if "evaluate" in metrics:
        kept = ("models", "pairwise", "ratings", "revision_rounds")
        figures["evaluation"] = {name: metrics["evaluate"][name] for name in kept}
    return figures


def _judge(metrics: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The picked judge's figures; of the others the whole checks stand under `checks`."""
    found = metrics["preflight"]
    own, *files = found["checks"][found["kind"]]
    judge = {"kind": found["kind"], **_named("check", own, found["weak"])}
    judge |= {"flip_rate": own["flip_rate"], "ece": own["ece"]}
    for check in files:
        judge |= _named("file", check, found["weak"])
    judge |= {"calibration": found["calibration"], "checks": found["checks"]}
    if "evaluate" in metrics:
        evaluated = metrics["evaluate"]
        judge |= {"evaluation_kind": evaluated["kind"]}
        worked, *others = evaluated["checks"]
        judge |= _named("evaluation", worked, evaluated["weak"])
        for check in others:
            judge |= _named("evaluation_file", check, evaluated["weak"])
    return judge


def _named(name: str, check: Mapping[str, Any], weak: Sequence[str]) -> dict[str, Any]:
    """A check's figures; `weak`: as the best of the kinds that were tried, it is not shown to beat chance."""
    return {
        f"{name}_accuracy": check["accuracy"],
        f"{name}_n": check["n"],
        f"{name}_ci95": check["ci95"],
        f"{name}_weak": check["on"] in weak,
    }


def _ppo(metrics: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """First and last are means over the first and last tenth of the steps (at least one)."""
    rows = read_rows(folder / "08_reinforce" / "rows.parquet", Step)
    steps = [json.loads(row.metrics) for row in rows if row.origin == PPO]
    tenth = max(1, len(steps) // 10)
    return {
        "steps": len(steps),
        "episodes": metrics["episodes"],
        "kl": _mean(steps[-tenth:], "kl"),
        "reward_first": _mean(steps[:tenth], "reward"),
        "reward_last": _mean(steps[-tenth:], "reward"),
        "score_first": _mean(steps[:tenth], "score"),
        "score_last": _mean(steps[-tenth:], "score"),
        "beta": steps[-1]["beta"],
        "ratio_error": max(step["ratio_error"] for step in steps),
        **{name: metrics[name] for name in ("guard", "kept") if name in metrics},
    }


def _mean(steps: list[dict[str, float]], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any number, in whole sentences."""
    evaluation = summary.get("evaluation", {})
    found = [
        *_judge_warnings(summary.get("judge", {})),
        *_reward_warnings(summary.get("reward_model")),
        *_unscored_warnings(evaluation.get("pairwise", ())),
        *_degenerate_warnings(evaluation.get("models", {})),
    ]
    stopped = [found for found in summary.get("ppo", {}).get("guard", ()) if found["over_optimised"]]
    if stopped:
        last = stopped[-1]
        low, high = last["ci95"]
        found.append(
            f"PPO was stopped after {last['step']} steps: on {PROMPTS[last['gamed_on']]} the reward rose "
            f"while the judge's own rating fell by {-last['change']:.2f} (95 % interval {-high:.2f} to "
            f"{-low:.2f}). The model after {summary['ppo']['kept']} steps is kept."
        )
    revisions = summary.get("revisions")
    if revisions and revisions["usable"] < _FEW_USABLE * revisions["total"]:
        found.append(
            f"Only {revisions['usable']} of {revisions['total']} revisions passed the filters: "
            "fine-tuning saw few of them."
        )
    return found


def _judge_warnings(judge: Mapping[str, Any]) -> Iterator[str]:
    for name, key, on in _CHECKED:
        if judge.get(f"{key}_weak"):
            measured = _measured(judge[f"{key}_accuracy"], judge[f"{key}_n"], judge[f"{key}_ci95"])
            yield (
                f"The {name} is not shown to be better than chance on {on} {measured}: do not trust what "
                "follows from it."
            )


def _reward_warnings(reward: Mapping[str, Any] | None) -> Iterator[str]:
    """About all pairs; if these are well, about the sorts of which there are enough."""
    if not reward:
        return
    if reward["ci95"][0] <= 0.5:
        measured = _measured(reward["heldout_accuracy"], reward["n"], reward["ci95"])
        yield (
            f"The reward model is not better than chance on held-out pairs {measured}: "
            "what learned from its scores learned from noise."
        )
        return
    for sort in reward["by_pairs"]:
        if sort["n"] >= _FEW_PAIRS and sort["ci95"][0] <= 0.5:
            yield (
                f"The reward model is not shown to be better than chance on held-out pairs "
                f"{sort_of_pairs(sort).removeprefix('… ')} "
                f"{_measured(sort['accuracy'], sort['n'], sort['ci95'])}."
            )


def _unscored_warnings(pairwise: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for pair in pairwise:
        left_out = sum(pair["unscored"].values())
        asked = left_out + pair["n"]
        if left_out > _MANY_UNSCORED * asked:
            reasons = ", ".join(f"{n} × {why}" for why, n in pair["unscored"].items())
            yield (
                f"The evaluation's judge gave no verdict on {left_out} of {asked} pairs of {pair['a']} and "
                f"{pair['b']} on {PROMPTS[pair['on']]} ({reasons}): the figure is about the others."
            )


def _degenerate_warnings(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Where a trained model's degenerate answers are clearly more than base's."""
    for name in (name for name in models if name != "base"):
        for on in ("red_team", "helpful"):
            rate, ci95 = f"degenerate_{on}_rate", f"degenerate_{on}_ci95"
            if models[name][ci95][0] > models["base"][ci95][1]:
                yield (
                    f"{models[name][rate]:.0%} of the model {name}'s answers to {PROMPTS[on]} are "
                    f"degenerate, {models['base'][rate]:.0%} of base's."
                )


def _measured(accuracy: float, n: int, interval: list[float]) -> str:
    low, high = interval
    return f"({accuracy:.0%} of {n}, 95 % interval {low:.0%} to {high:.0%})"
