"""The report: one HTML file that holds everything it shows, in any browser, light, dark or printed.

Prompts, principles and model output are hostile text: the template escapes all of it, and a content
security policy forbids the page to run or fetch anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from solon.report import wording
from solon.report.figures import agreement_figure, figures
from solon.report.rundata import RunData, read_run
from solon.report.transcripts import panels, rejections, threads
from solon.store import write_atomically
from solon.summary import PROMPTS, sort_of_pairs
from solon.text import without_controls

THREADS, RED_TEAM_PANELS, HELPFUL_PANELS = 6, 6, 4
_SETS = {"red_team": "red-team", "helpful": "ordinary"}


@dataclass(frozen=True)
class Tile:
    """One figure of the page's top row."""

    value: str
    label: str
    detail: str


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, finished or not; its path.

    Raises:
        RunError: no such folder, or a file in it is damaged.
    """
    path = run / "report.html"
    write_atomically(path, render(read_run(run)))
    return path


def render(run: RunData) -> str:
    """The page as a string."""
    page = _environment().get_template("page.html.j2").render(_context(run))
    return without_controls(page)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "interval", "count", "decimal", "points", "duration", "reading"):
        environment.filters[name] = getattr(wording, name)
    return environment


def _context(run: RunData) -> dict[str, Any]:
    evaluation = run.summary.get("evaluation", {})
    filters = run.summary.get("filters", rejections(run.revised))
    effects = run.summary.get("principles")
    return {
        "title": run.summary.get("recipe", run.name),
        "facts": _facts(run.summary),
        "warnings": run.summary.get("warnings", []),
        "verdict": wording.verdict(run.summary),
        "missing": run.missing,
        "tiles": _tiles(run.summary),
        "models": list(evaluation.get("models", {}).items()),
        "pairwise": evaluation.get("pairwise", []),
        "measures": _measures(run.summary),
        "checks": _checks(run.summary.get("judge", {})),
        "labels": _label_counts(run.summary),
        "figures": figures(run),
        "threads": threads(run.revised, THREADS),
        "panels": {
            "red_team": panels(run.answers, run.verdicts, "red_team", RED_TEAM_PANELS),
            "helpful": panels(run.answers, run.verdicts, "helpful", HELPFUL_PANELS),
        },
        "filters": sorted(filters.items(), key=lambda item: (-item[1], item[0])),
        "revisions": run.summary.get("revisions"),
        "effects": effects,
        "one_direction": wording.one_direction(effects) if effects else None,
        "agreement": agreement_figure(run),
        "constitution": run.constitution,
        "stages": _stages(run),
        "recipe": run.recipe,
        "names": wording.NAMES,
        "sets": _SETS,
    }


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, on what, by what; absent entries are left out."""
    constitution = summary.get("constitution", {})
    told = {
        "Model": summary.get("model"),
        "Constitution": " ".join(str(constitution[k]) for k in ("name", "version") if k in constitution),
        "Digest": constitution.get("digest"),
        "Seed": summary.get("seed"),
        "Device": " · ".join(str(summary[k]) for k in ("device", "dtype") if k in summary),
        "Solon": summary.get("solon"),
    }
    return [(name, str(value)) for name, value in told.items() if value not in (None, "")]


def _tiles(summary: Mapping[str, Any]) -> list[Tile]:
    evaluation = summary.get("evaluation", {})
    return [*_win_tiles(evaluation.get("pairwise", [])), *_refusal_tiles(evaluation.get("models", {}))]


def _win_tiles(pairwise: Sequence[Mapping[str, Any]]) -> list[Tile]:
    return [
        Tile(
            wording.percent(p["win_rate"]),
            f"RL preferred to base on {_SETS[p['on']]} prompts",
            f"95 % CI {wording.interval(p['ci95'])}, n = {p['n']}",
        )
        for p in pairwise
        if (p["a"], p["b"]) == ("rl", "base")
    ]


def _refusal_tiles(models: Mapping[str, Any]) -> list[Tile]:
    if not {"base", "rl"} <= models.keys():
        return []
    kinds = (("refusal", "harmful requests refused"), ("over_refusal", "ordinary ones refused"))
    return [_refusal_tile(models["base"], models["rl"], kind, label) for kind, label in kinds]


def _refusal_tile(base: Mapping[str, Any], rl: Mapping[str, Any], kind: str, label: str) -> Tile:
    before, after = wording.percent(base[f"{kind}_rate"]), wording.percent(rl[f"{kind}_rate"])
    detail = f"RL: 95 % CI {wording.interval(rl[f'{kind}_ci95'])}"
    return Tile(f"{before} → {after}", f"{label}, base → RL", detail)


def _measures(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """How well the instruments worked: (what, figure, interval, n)."""
    judge, reward, ppo = (summary.get(key, {}) for key in ("judge", "reward_model", "ppo"))
    kind = str(judge.get("kind", "")).replace("_", " ")
    other = str(judge.get("evaluation_kind", kind)).replace("_", " ")
    rows = [
        _accuracy(f"Judge of the training pairs ({kind})", judge, "check"),
        _accuracy(f"Judge of the evaluation ({other})", judge, "evaluation"),
    ]
    if "heldout_accuracy" in reward:
        shares = (wording.percent(reward["heldout_accuracy"]), wording.interval(reward["ci95"]))
        rows.append(("Reward model on held-out pairs", *shares, wording.count(reward["n"])))
        rows += [_sort_row(found) for found in reward.get("by_pairs", ())]
    if "ece" in reward:
        rows.append(
            ("Reward model's calibration error (ECE)", wording.percent(reward["ece"]), wording.NONE, "")
        )
    if ppo:
        change = f"{wording.decimal(ppo['reward_first'])} → {wording.decimal(ppo['reward_last'])}"
        rows.append(
            ("PPO: mean reward, first → last steps", change, wording.NONE, wording.count(ppo["episodes"]))
        )
        rows.append(
            ("PPO: KL from the SL model, nats an episode", wording.decimal(ppo["kl"]), wording.NONE, "")
        )
    rows += [_guard_row(found) for found in ppo.get("guard", ())]
    return [row for row in rows if row]


def _sort_row(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The reward model on one sort of held-out pairs."""
    shares = (wording.percent(found["accuracy"]), wording.interval(found["ci95"]))
    return sort_of_pairs(found), *shares, wording.count(found["n"])


def _guard_row(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """One check against over-optimisation: the reward beside the judge's own rating."""
    change = " to ".join(wording.decimal(bound) for bound in found["ci95"])
    return (
        f"Guard after {found['step']} steps: score; judge's rating over the SL model"
        + (f" (over-optimised on {PROMPTS[found['gamed_on']]}: stopped)" if found["over_optimised"] else ""),
        f"{wording.decimal(found['score'])}; {wording.percent(found['rating'])}",
        f"change from the best check {change}",
        "",
    )


def _accuracy(name: str, judge: Mapping[str, Any], key: str) -> tuple[str, str, str, str] | None:
    if f"{key}_accuracy" not in judge:
        return None
    share, ci95 = wording.percent(judge[f"{key}_accuracy"]), wording.interval(judge[f"{key}_ci95"])
    return name, share, ci95, wording.count(judge[f"{key}_n"])


def _checks(judge: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The preflight's figures of every judge that the recipe allows, the picked one's first.

    A row has: judge, measured on, right, interval, n, right where lengths are alike, floors (shorter,
    longer), same position after the swap, calibration error, unscored.
    """
    checks = judge.get("checks", {})
    kinds = sorted(checks, key=lambda kind: kind != judge.get("kind"))
    return [_check_row(check) for kind in kinds for check in checks[kind]]


def _check_row(check: Mapping[str, Any]) -> tuple[str, ...]:
    matched = check["length_matched"] or {}
    floors = f"{wording.percent(check['shorter'])}, {wording.percent(check['longer'])}"
    return (
        str(check["kind"]).replace("_", " "),
        str(check["on"]),
        wording.percent(check["accuracy"]),
        wording.interval(check["ci95"]),
        wording.count(check["n"]),
        wording.percent(matched.get("accuracy")),
        floors,
        wording.percent(check["flip_rate"]),
        wording.decimal(check["ece"], 3),
        wording.count(sum(check["unscored"].values())),
    )


def _label_counts(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Labelled pairs that train nothing, by reason."""
    return [(reason, n) for key in ("unscored", "dropped") for reason, n in summary.get(key, {}).items()]


def _stages(run: RunData) -> dict[str, Any]:
    """The cost table: a row for each stage, and the totals."""
    total = sum(stage["seconds"] for stage in run.stages)
    rows = [
        {
            **{key: stage[key] for key in ("name", "seconds", "tokens", "rows", "reused")},
            "share": stage["seconds"] / total if total else 0.0,
            "resumed": run.resumed.get(stage["name"], 0),
        }
        for stage in run.stages
    ]
    return {"rows": rows, "seconds": total, "tokens": sum(stage["tokens"] for stage in run.stages)}
