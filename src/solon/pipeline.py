"""Runs the stages in order, reuses what is unchanged, and goes on where a killed run stopped."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from solon import embedded
from solon import recipe as recipes
from solon.constitution import MIN_COMPARISONS, Constitution, Purpose, dump, load_constitution
from solon.errors import RunError, UsageError
from solon.models import ModelSource, is_here, resolve
from solon.plan import (
    BY_NAME,
    STAGES,
    Models,
    Stage,
    check_paths,
    prompt_paths,
    shaping_path,
    stage_key,
)
from solon.processes import Process, alone, this_process, wait_until
from solon.progress import Reporter
from solon.prompt_supply import supply
from solon.recipe import JudgeName, Recipe
from solon.records import Row
from solon.role_models import greet, role_source
from solon.roles import RoleName
from solon.store import (
    EventLog,
    Manifest,
    Workspace,
    forget,
    is_leftover,
    locked,
    read_manifest,
    read_rows,
    write_atomically,
)
from solon.tables import Rows
from solon.yamlfile import load

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Inputs:
    """All that a stage may read: the constitution, the base model, and the finished stages' folders."""

    constitution: Constitution
    base: ModelSource
    models: Mapping[RoleName, ModelSource]
    beside: Path
    folders: Mapping[str, Path]

    def rows(self, stage: str, row: type[R]) -> Rows[R]:
        return read_rows(self.folders[stage] / "rows.parquet", row)


@dataclass(frozen=True)
class Planned:
    """One line of a dry run."""

    stage: Stage
    reused: Manifest | None
    work: str


class Run:
    """A recipe bound to a run folder."""

    def __init__(
        self, recipe: Recipe, beside: Path, folder: Path, reporter: Reporter, fetch: bool = True
    ) -> None:
        """Bind and check. Nothing is written yet, and without `fetch` no model is downloaded.

        Raises:
            UsageError: the constitution or a prompt file is faulty, or the folder is another recipe's.
        """
        self.recipe = recipe
        self.folder = folder
        self.beside = beside
        self.constitution = load_constitution(_constitution_path(recipe, beside))
        self.process = this_process()
        self._reporter = reporter if self.process.main else Reporter(quiet=True)
        # All that can be told without a model comes before one is fetched.
        prompt_paths(recipe, beside)
        for judge in ("judge", "evaluator"):
            check_paths(recipe, beside, judge)
        shaping_path(recipe, beside)
        _check_fit(recipe, self.constitution)
        _check_alone(recipe, self.process)
        _check_owner(folder, recipe)
        if fetch and (missing := _not_here(recipe)):
            list(self.supply())  # A fault in a prompt file is told before gigabytes are fetched
            _announce_fetching(missing, self._reporter)
        self._base = resolve(recipe.model, fetch)
        self._models = _role_sources(recipe, self._base, fetch)

    def plan(self, until: str | None = None) -> list[Planned]:
        """What would run and what would be reused, decided without running anything."""
        outputs: dict[str, str] = {}
        planned = []
        for stage in _stages(until):
            manifest = self._reusable(stage, outputs)
            if manifest:
                outputs[stage.name] = manifest.output
            planned.append(Planned(stage, manifest, stage.planned(self.recipe)))
        return planned

    def supply(self) -> Iterator[str]:
        """The prompts that the recipe's files hold, in lines. Errors are those of `prompt_supply.supply`."""
        return supply(self.recipe, self.beside)

    def execute(self, until: str | None = None) -> list[tuple[Manifest, bool]]:
        """Run all stages up to `until`; each stage's manifest, and whether it was reused.

        Nothing of an older recipe is ever left to be shown beside the new: the old summary and report go
        first, and so do the manifests of stages that no longer fit.

        Of several processes the first does so; the others join it where a stage is distributed, and return
        nothing.

        Raises:
            RunError: a stage had to stop. What is finished stays.
        """
        stages = _stages(until)
        if not self.process.main:
            self._follow(stages)
            return []
        with locked(self.folder):
            for shown in ("summary.json", "report.html"):
                (self.folder / shown).unlink(missing_ok=True)
            self._drop_outdated()
            write_atomically(self.folder / "recipe.yaml", recipes.dump(_from_anywhere(self.recipe)))
            write_atomically(self.folder / "constitution.yaml", dump(self.constitution))
            self._greet_evaluator(stages)
            events = EventLog(self.folder / "events.jsonl")
            outputs: dict[str, str] = {}
            done = []
            for stage in stages:
                manifest = self._reusable(stage, outputs)
                reused = manifest is not None
                if manifest is None:
                    manifest = self._run_stage(stage, outputs, events)
                    self._drop_outdated()
                self._announce(stage, manifest, reused)
                if stage.name == "red_team" and stages[-1] is STAGES[-1]:
                    _check_held_out(manifest)
                outputs[stage.name] = manifest.output
                done.append((manifest, reused))
            return done + self._finished_after(stages, outputs)

    def _greet_evaluator(self, stages: Sequence[Stage]) -> None:
        """The last stage alone asks it: a server that is away is missed now, not hours later."""
        section = self.recipe.section("evaluator")
        if stages[-1] is STAGES[-1] and section == "evaluator" and self.plan()[-1].reused is None:
            greet("evaluator", self.recipe.role("evaluator"))

    def _follow(self, stages: Sequence[Stage]) -> None:
        """What a process does that is not the first: its share of distributed stages."""
        outputs: dict[str, str] = {}
        for stage in stages:
            workspace = self._workspace(stage)
            key = self._key(stage, outputs)

            def finished(stage: Stage = stage) -> bool:
                return self._reusable(stage, outputs) is not None

            if stage.distributed:
                wait_until(lambda w=workspace, k=key, done=finished: w.begun(k) or done())  # type: ignore[misc]
                if not finished():
                    self._module(stage).run(self.recipe, self._inputs(stage), workspace)
            wait_until(finished)
            manifest = self._reusable(stage, outputs)
            assert manifest is not None
            outputs[stage.name] = manifest.output

    def _drop_outdated(self) -> None:
        """Remove the manifests of stages that would have to be redone, by all that is known so far.

        A stage whose input is not finished keeps its manifest: the input may come out the same again.
        """
        outputs: dict[str, str] = {}
        for stage in STAGES:
            if manifest := self._reusable(stage, outputs):
                outputs[stage.name] = manifest.output
            elif all(name in outputs for name in stage.inputs(self.recipe)):
                forget(self.folder / stage.folder)

    def _finished_after(
        self, stages: Sequence[Stage], outputs: dict[str, str]
    ) -> list[tuple[Manifest, bool]]:
        """Later stages that an earlier call finished and that are still up to date."""
        later = []
        for stage in STAGES[len(stages) :]:
            if manifest := self._reusable(stage, outputs):
                outputs[stage.name] = manifest.output
                later.append((manifest, True))
        return later

    def _reusable(self, stage: Stage, outputs: Mapping[str, str]) -> Manifest | None:
        if any(name not in outputs for name in stage.inputs(self.recipe)):
            return None
        manifest = read_manifest(self.folder / stage.folder)
        return manifest if manifest and manifest.key == self._key(stage, outputs) else None

    def _key(self, stage: Stage, outputs: Mapping[str, str]) -> str:
        inputs = {name: outputs[name] for name in stage.inputs(self.recipe)}
        roles = {name: source.identity for name, source in self._models.items()}
        models = Models(self._base.identity, roles)
        return stage_key(stage, self.recipe, self.constitution, models, inputs, self.beside)

    def _run_stage(self, stage: Stage, outputs: Mapping[str, str], events: EventLog) -> Manifest:
        key = self._key(stage, outputs)
        workspace = self._workspace(stage)
        workspace.begin(key)
        earlier = workspace.earlier_seconds()
        events.write("stage", stage=stage.name, key=key, state="started")
        lonely = self.process.count > 1 and not stage.distributed
        with alone() if lonely else nullcontext():
            result = self._module(stage).run(self.recipe, self._inputs(stage), workspace)
        manifest = workspace.finish(key, stage.row, result, earlier)
        events.write("stage", stage=stage.name, key=key, state="finished", seconds=manifest.seconds)
        return manifest

    def _workspace(self, stage: Stage) -> Workspace:
        events = EventLog(self.folder / "events.jsonl")
        return Workspace(stage.name, self.folder / stage.folder, events, self._reporter)

    def _inputs(self, stage: Stage) -> Inputs:
        folders = {name: self.folder / BY_NAME[name].folder for name in stage.inputs(self.recipe)}
        return Inputs(self.constitution, self._base, self._models, self.beside, folders)

    @staticmethod
    def _module(stage: Stage) -> Any:
        return importlib.import_module(f"solon.stages.{stage.name}")

    def _announce(self, stage: Stage, manifest: Manifest, reused: bool) -> None:
        how = "reused" if reused else f"done in {manifest.seconds:.0f} s"
        self._reporter.say(f"{stage.number}/{len(STAGES)} {stage.name:<10} {manifest.rows:>5} rows  {how}")


def _stages(until: str | None) -> tuple[Stage, ...]:
    if until is None:
        return STAGES
    if until not in BY_NAME:
        names = ", ".join(stage.name for stage in STAGES)
        raise UsageError(f"--until {until}: there is no such stage. The stages are: {names}.")
    return STAGES[: BY_NAME[until].number]


def _not_here(recipe: Recipe) -> list[str]:
    """The models of the recipe that have to be fetched."""
    roles = (recipe.role(name) for name in get_args(RoleName))
    named = [recipe.model, *(role.model for role in roles if role.model and role.engine != "http")]
    return [name for name in dict.fromkeys(named) if not is_here(name)]


def _announce_fetching(names: Sequence[str], reporter: Reporter) -> None:
    """Say which models are fetched now: a large one takes long, and the libraries' own bars are off."""
    for name in names:
        size = "98 MB, once" if name == embedded.NAME else "once; a large one takes long"
        told = f"the embedded model {embedded.TITLE}" if name == embedded.NAME else f"the model {name}"
        reporter.say(f"Fetching {told} ({size}).")


def _role_sources(recipe: Recipe, base: ModelSource, fetch: bool) -> dict[RoleName, ModelSource]:
    """The model of every role. Each is looked up once: that reads parts of its weights, or asks a server."""
    known: dict[tuple[tuple[str, ...], str], ModelSource] = {((), recipe.model): base}
    found: dict[RoleName, ModelSource] = {}
    for name in get_args(RoleName):
        role = recipe.role(name)
        asked = (role.endpoints, role.model or ("" if role.endpoints else recipe.model))
        if asked not in known:
            known[asked] = role_source(name, role, recipe.model, fetch)
        found[name] = known[asked]
    return found


def _from_anywhere(recipe: Recipe) -> Recipe:
    """The recipe with its models' folders written in full: a run is opened from other places, too."""

    def placed(model: str) -> str:
        path = Path(model).expanduser()
        return str(path.resolve()) if model not in ("", embedded.NAME) and path.is_dir() else model

    roles = {name: getattr(recipe, name) for name in get_args(RoleName)}
    own = {
        name: role.model_copy(update={"model": placed(role.model)})
        for name, role in roles.items()
        if role and role.engine != "http"
    }
    return recipe.model_copy(update={"model": placed(recipe.model), **own})


def _constitution_path(recipe: Recipe, beside: Path) -> Path | str:
    local = beside / recipe.constitution
    return local if local.is_file() else recipe.constitution


def _check_fit(recipe: Recipe, constitution: Constitution) -> None:
    """Refuse, before any work, what would only fail hours later."""
    if not constitution.of("evaluation"):
        fix = "Mark at least one principle with `purpose: evaluation`."
        raise UsageError(f"the constitution {constitution.name} has no evaluation principle. {fix}")
    names: dict[Purpose, JudgeName] = {"training": "judge", "evaluation": "evaluator"}
    for purpose, name in names.items():
        count = len(constitution.comparisons(purpose))
        wanted = MIN_COMPARISONS if "linear_probe" in recipe.judge_of(name).all_kinds else 1
        if count < wanted:
            raise UsageError(
                f"the constitution {constitution.name} has {count} comparisons for {purpose} principles; "
                f"the judge needs {wanted}. Write more under demonstrations.comparisons."
            )


def _check_held_out(prompts: Manifest) -> None:
    """Refuse, as soon as the prompts are known, a run to its end that has none to evaluate on."""
    for kind, files in (("red_team", "sources"), ("helpful", "helpful")):
        if not prompts.metrics[f"{kind}_heldout"]:
            raise RunError(
                f"no prompt of kind {kind} is held out for the evaluation. Add prompts under "
                f"red_team.{files}, raise red_team.heldout, or name a file under red_team.heldout_{files}; "
                "or stop before the evaluation with --until."
            )


def _check_alone(recipe: Recipe, process: Process) -> None:
    """Refuse TRL's trainers in several processes: only PPO shares its work."""
    others = [name for name in recipe.reinforce.algorithm if name != "ppo"]
    if process.count > 1 and others:
        raise UsageError(
            f"{', '.join(others)}: {process.count} processes were launched, and only ppo shares its work. "
            "Run it in one process, or set reinforce.algorithm=ppo."
        )


def _check_owner(folder: Path, recipe: Recipe) -> None:
    """A run folder belongs to one recipe; settings may change, and redo what depends on them."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place}: this is a file. Name another folder with --run-dir.")
    path = folder / "recipe.yaml"
    if not path.exists():
        if folder.exists() and not all(is_leftover(file) for file in folder.iterdir()):
            raise UsageError(f"{folder}: not empty and no run folder. Name another one with --run-dir.")
        return
    owner = load(path).data.get("name")
    if owner != recipe.name:
        message = f"{folder}: made by the recipe `{owner}`, not `{recipe.name}`."
        raise UsageError(f"{message} Use another --run-dir, or remove the folder.")


def open_run(folder: Path) -> Path:
    """The folder, if it holds a run. Raises RunError otherwise."""
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder}: not a run folder (no recipe.yaml). Make one with `solon run`.")
    return folder
