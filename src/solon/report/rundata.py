"""Reads what a run folder holds, finished or not; what is absent is None or empty, never an error.

A file that is there but damaged is an error: a report must not be silent about half a run.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from solon.constitution import Constitution
from solon.errors import RunError
from solon.plan import BY_NAME, STAGES
from solon.recipe import load_recipe
from solon.records import PPO, Row, Step, Verdict, Written
from solon.store import Manifest, read_manifest, read_rows
from solon.yamlfile import load, read_text, validate

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class RunData:
    """Everything the report shows, as it stands in the folder.

    `stages` are the finished ones in order (a mapping each, as in the summary); `resumed` counts how often a
    stage was started again after it had been interrupted.
    """

    name: str
    summary: dict[str, Any]
    constitution: Constitution | None
    recipe: str | None
    stages: list[dict[str, Any]]
    resumed: dict[str, int]
    revised: list[Written]
    answers: list[Written]
    verdicts: list[Verdict]
    ppo: list[dict[str, Any]]

    @property
    def missing(self) -> list[str]:
        """The stages that have not run to their end."""
        done = {stage["name"] for stage in self.stages}
        return [stage.name for stage in STAGES if stage.name not in done]


def read_run(run: Path) -> RunData:
    """Read a run folder.

    Raises:
        RunError: no such folder, or a file in it is damaged.
        UsageError: the constitution in it was edited into something that is none.
    """
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder. Make one with `solon run`.")
    summary = _json_object(run / "summary.json")
    finished = finished_stages(run)
    constitution = run / "constitution.yaml"
    recipe = run / "recipe.yaml"
    return RunData(
        name=run.resolve().name,
        summary=summary,
        constitution=validate(load(constitution), Constitution) if constitution.exists() else None,
        recipe=read_text(recipe) if recipe.exists() else None,
        stages=_stages(finished, summary),
        resumed=_resumed(run / "events.jsonl"),
        revised=_rows(run, "revise", Written) if "revise" in finished else [],
        answers=_rows(run, "evaluate", Written, "answers.parquet") if "evaluate" in finished else [],
        verdicts=_rows(run, "evaluate", Verdict) if "evaluate" in finished else [],
        ppo=[_metrics(s) for s in _rows(run, "reinforce", Step) if s.origin == PPO]
        if "reinforce" in finished
        else [],
    )


def finished_stages(run: Path) -> dict[str, Manifest]:
    """The manifests, by stage, of what the run's own recipe has finished; later leftovers are not among them.

    The summary lists them. Where a run was killed before its summary, a stage counts if its inputs do: what
    follows an unfinished one may have been made from an older recipe's texts.

    Raises:
        RunError: the summary or a manifest is damaged.
        UsageError: there is no summary, and the recipe was edited into something that is none.
    """
    manifests = {s.name: m for s in STAGES if (m := read_manifest(run / s.folder))}
    summary, path = _json_object(run / "summary.json"), run / "recipe.yaml"
    if "stages" in summary:
        listed = {stage["name"] for stage in summary["stages"]}
        return {name: manifest for name, manifest in manifests.items() if name in listed}
    recipe = load_recipe(path)[0] if path.exists() else None
    found: dict[str, Manifest] = {}
    for name, manifest in manifests.items():
        if recipe and all(needed in found for needed in BY_NAME[name].inputs(recipe)):
            found[name] = manifest
    return found


def _json_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}). Run the recipe again to rewrite it.") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: holds no JSON object. Run the recipe again to rewrite it.")
    return found


def _stages(finished: dict[str, Manifest], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The summary's stages; where a run was killed before its summary, the manifests'."""
    if "stages" in summary:
        return list(summary["stages"])
    return [{**asdict(m), "name": m.stage, "reused": False} for m in finished.values()]


def _rows(run: Path, stage: str, row: type[R], file: str = "rows.parquet") -> list[R]:
    return list(read_rows(run / BY_NAME[stage].folder / file, row))


def _metrics(step: Step) -> dict[str, Any]:
    found = json.loads(step.metrics)
    if not isinstance(found, dict):
        raise RunError(
            f"step {step.step}: its metrics are no JSON object. Remove 08_reinforce and run again."
        )
    return found


def _resumed(path: Path) -> dict[str, int]:
    """How often each stage was started anew, with the same settings, before it finished: by the event log."""
    if not path.exists():
        return {}
    counts: dict[str, int] = {}
    begun: dict[str, Any] = {}  # By stage the key under which it began, until it has finished
    for event in _events(path):
        if event.get("event") != "stage":
            continue
        name = str(event.get("stage"))
        if event.get("state") == "started":
            again = name in begun and begun[name] == event.get("key")
            counts[name] = counts.get(name, 0) + 1 if again else 0
            begun[name] = event.get("key")
        else:
            begun.pop(name, None)
    return {name: count for name, count in counts.items() if count}


def _events(path: Path) -> Sequence[dict[str, Any]]:
    """The whole lines of the log; a line that a kill tore is left out, for the log is no data."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
