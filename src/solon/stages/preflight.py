"""Stage 2, preflight: is the judge worth listening to?

Everything downstream learns what the judge says, so it is measured before anything is made with it: on the
constitution's own comparisons, each without having been taught by it, and on the recipe's check file. The
best of the allowed judges is picked and calibrated. One that may be no better than chance stops the run.
"""

import json

from solon.engines.base import used_by
from solon.errors import RunError
from solon.feedback.check import Check
from solon.feedback.ensemble import by_one_principle
from solon.feedback.linear_probe import LinearProbe
from solon.feedback.opening import Picked, pick
from solon.feedback.probe_file import PROBE, save_probe
from solon.pipeline import Inputs
from solon.plan import check_paths
from solon.recipe import Recipe
from solon.stages.common import PICKED, judge_bench, role_engine
from solon.store import StageResult, Workspace, write_atomically


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    engine = role_engine(recipe, inputs, "judge")
    picked = pick(judge_bench(recipe, inputs, engine, "training"), *check_paths(recipe, inputs.beside))
    for check in picked.checks:
        workspace.reporter.say(f"judge {describe(check)}")
    if picked.weak and not recipe.judge.allow_weak:
        raise RunError(_too_weak(picked))
    calibration = picked.judge.calibration.as_dict()
    choice = {"kind": picked.kind, "calibration": calibration}
    write_atomically(workspace.folder / PICKED, json.dumps(choice, indent=1))
    outputs = [PICKED]
    probe = by_one_principle(picked.judge.judge)
    if isinstance(probe, LinearProbe):
        save_probe(probe.fitted, workspace.folder / PROBE)
        outputs.append(PROBE)
    metrics = {
        **choice,
        "weak": [check.on for check in picked.weak],
        "checks": {k: [m.check.as_dict() for m in sets] for k, sets in picked.measured.items()},
    }
    rows = [row for sets in picked.measured.values() for one in sets for row in one.rows()]
    return StageResult(rows, metrics, outputs=tuple(outputs), tokens=used_by(engine)())


def describe(check: Check) -> str:
    """A check in one line: accuracy, interval, and what it was measured on."""
    low, high = check.ci95
    right = f"right on {check.accuracy:.0%} of {check.n} {check.on}"
    return f"{check.kind}: {right} (95 % interval {low:.0%} to {high:.0%})"


def _too_weak(picked: Picked) -> str:
    weak = "; ".join(map(describe, picked.weak))
    best = f", as the best of {len(picked.measured)} kinds" if len(picked.measured) > 1 else ""
    return (
        f"the judge is not shown to be better than chance{best}: {weak}. Labels from it would be noise. "
        "Allow another judge (judge.kind), give a larger judge.model or write more comparisons into the "
        "constitution; --allow-weak-judge goes on nevertheless."
    )
