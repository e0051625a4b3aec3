"""The method as a graph: which stages there are, what each reads, and what its result depends on.

Imports no torch: a dry run needs only this file. A stage's key is a digest of everything that its rows
depend on (its part of the recipe and of the constitution, its inputs' contents, the model), so that it
is redone if, and only if, one of these changed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon import shipped
from solon.constitution import Constitution, Principle, Purpose
from solon.digest import digest, file_sha256
from solon.errors import UsageError
from solon.judge_settings import JudgeKind, JudgeSettings
from solon.recipe import JudgeName, Recipe, Source
from solon.records import Checked, Label, Prompt, Row, Step, Verdict, Written
from solon.roles import Role, RoleName
from solon.training_settings import Algorithm

Part = Callable[[Recipe, Constitution], Any]


Files = Callable[[Recipe, Path], list[Path]]


def _no_files(recipe: Recipe, beside: Path) -> list[Path]:
    return []


@dataclass(frozen=True)
class Stage:
    """One stage: its module below `solon.stages`, its inputs, and what it depends on.

    `inputs` names the stages that it reads, `files` the user's files, and `roles` those whose models take
    part. `version` is raised when a change of the code changes the rows. All processes of a
    launch join in a `distributed` stage; the first one does the others.
    """

    number: int
    name: str
    row: type[Row]
    inputs: Callable[[Recipe], tuple[str, ...]]
    depends: Part
    planned: Callable[[Recipe], str]
    files: Files = _no_files
    roles: Callable[[Recipe], tuple[RoleName, ...]] = lambda recipe: ()
    version: int = 1
    distributed: bool = False

    @property
    def folder(self) -> str:
        return f"{self.number:02d}_{self.name}"


def _reads(*names: str) -> Callable[[Recipe], tuple[str, ...]]:
    return lambda recipe: names


def prompt_paths(recipe: Recipe, beside: Path) -> list[Path]:
    """The prompt files that the recipe names. Raises UsageError for one that is absent."""
    sources = recipe.red_team.files
    return [shipped.find("prompts", source.file, ".jsonl", beside) for source in sources]


def check_paths(recipe: Recipe, beside: Path, name: JudgeName = "judge") -> list[Path]:
    """The check file of a judge, if the recipe names one. Raises UsageError if it is absent."""
    check = recipe.judge_of(name).check
    return [_users_file(f"{name}.check", check, beside)] if check else []


def _evaluator_paths(recipe: Recipe, beside: Path) -> list[Path]:
    return check_paths(recipe, beside, "evaluator")


def _users_file(key: str, file: str, beside: Path) -> Path:
    path = Path(file).expanduser()
    found = path if path.is_absolute() else beside / path
    if not found.is_file():
        raise UsageError(f"{key}: there is no file {found}. Give a path relative to the recipe.")
    return found


def shaping_path(recipe: Recipe, beside: Path) -> tuple[Path, str] | None:
    """File and name of the function that shapes the reward, if the recipe names one.

    Raises:
        UsageError: it is not written as `file.py:name`, or there is no such file.
    """
    if recipe.reinforce.reward is None:
        return None
    file, colon, name = recipe.reinforce.reward.rpartition(":")
    if not (colon and file and name.isidentifier()):
        raise UsageError(
            f"reinforce.reward: {recipe.reinforce.reward}: write a file and a function in it, for instance "
            "rewards.py:brief."
        )
    return _users_file("reinforce.reward", file, beside), name


def _shaping_files(recipe: Recipe, beside: Path) -> list[Path]:
    found = shaping_path(recipe, beside)
    return [found[0]] if found else []


def _wordings(principles: tuple[Principle, ...], *fields: str) -> list[Any]:
    return [[p.id, p.weight, p.asked_on, *(getattr(p, field) for field in fields)] for p in principles]


_WORDING_OF: Mapping[JudgeKind, tuple[str, ...]] = {
    "linear_probe": (),
    "choice": ("question",),
    "chain_of_thought": ("question",),
    "score": ("question",),
    "likelihood": ("revision",),
    "ensemble": (),
}


# Of a role: where its model runs and how much at the most. What it says does not depend on that. Which model
# it is, its identity tells (`Models.roles`).
_WHERE = frozenset({"model", "endpoints", "api_key_env", "http", "vllm"})


def _role_part(role: Role, *other: str) -> list[Any]:
    """The settings of a role, without these others. Where a model runs, its context may cut texts short."""
    context = [role.vllm.context] if role.engine == "vllm" else []
    asked = [role.http.interface, role.http.template]
    return [role.model_dump(exclude={*other, *_WHERE}), *asked, *context]


def judge_part(settings: JudgeSettings, constitution: Constitution, purpose: Purpose) -> Any:
    """What a judge's answers depend on: which principles are drawn, and the wordings that its kind reads."""
    fields = sorted({field for kind in settings.all_kinds for field in _WORDING_OF[kind]})
    comparisons = [c.model_dump() for c in constitution.comparisons(purpose)]
    return [
        *_role_part(settings, "allow_weak"),
        comparisons,
        _wordings(constitution.of(purpose), *fields),
    ]


def _preflight(recipe: Recipe, constitution: Constitution) -> Any:
    return [judge_part(recipe.judge, constitution, "training"), recipe.judge.allow_weak]


def _red_team(recipe: Recipe, constitution: Constitution) -> Any:
    """Files count by their names, which rows tell, and by their content: not by where they lie."""
    settings = recipe.red_team

    def named(sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(s.model_copy(update={"file": Path(s.file).name}) for s in sources)

    fields = ("sources", "helpful", "heldout_sources", "heldout_helpful")
    part = settings.model_copy(update={f: named(getattr(settings, f)) for f in fields}).model_dump()
    return [part, sorted(constitution.demonstrations.prompts)]


def _revise(recipe: Recipe, constitution: Constitution) -> Any:
    principles = _wordings(constitution.of("training"), "critique", "revision")
    ids = {p.id for p in constitution.of("training")}
    shown = [d.model_dump() for d in constitution.demonstrations.revisions if d.principle in ids]
    judged = judge_part(recipe.judge, constitution, "training") if recipe.revise.candidates > 1 else None
    return [recipe.revise.model_dump(), _role_part(recipe.critic), principles, shown, judged]


def _label(recipe: Recipe, constitution: Constitution) -> Any:
    questions = _wordings(constitution.of("training"), "question")
    return [recipe.label.model_dump(), questions, judge_part(recipe.judge, constitution, "training")]


def _evaluate(recipe: Recipe, constitution: Constitution) -> Any:
    questions = _wordings(constitution.of("evaluation"), "question")
    judge = judge_part(recipe.judge_of("evaluator"), constitution, "evaluation")
    return [recipe.evaluate.model_dump(), questions, judge]


def _guarded(recipe: Recipe) -> bool:
    """Whether the judge takes part in reinforcement: PPO's guard asks it."""
    return "ppo" in recipe.reinforce.algorithm and recipe.reinforce.guard.every > 0


def _learns_from(recipe: Recipe) -> tuple[str, ...]:
    """What the chosen algorithms read beside prompts and the SL model."""
    algorithms = set(recipe.reinforce.algorithm)
    names = (
        ("preflight", _guarded(recipe)),
        ("label", "dpo" in algorithms),
        ("reward", bool(algorithms - {"dpo"})),
    )
    return tuple(name for name, needed in names if needed)


def _fine_tuned_on(recipe: Recipe) -> list[int]:
    """How many prompts fine-tuning has had: sampling and reinforcement begin behind them."""
    return [recipe.revise.prompts, recipe.revise.helpful]


def _reinforce(recipe: Recipe, constitution: Constitution) -> Any:
    settings = recipe.reinforce.model_dump(exclude={"batch_tokens": True, "openings": {"batch"}})
    pairs = [recipe.reward.max_tokens] if "dpo" in recipe.reinforce.algorithm else []
    part = [settings, pairs, _fine_tuned_on(recipe)]
    if not _guarded(recipe):
        return part
    questions = _wordings(constitution.of("training"), "question")
    return [part, questions, judge_part(recipe.judge, constitution, "training")]


def rl_models(recipe: Recipe) -> dict[str, Algorithm]:
    """The names of the run's RL models and the algorithm of each; the first one is the run's own, `rl`."""
    first, *others = recipe.reinforce.algorithm
    return {"rl": first, **{name: name for name in others}}


def model_folder(name: str) -> str:
    """Where the RL model of that name lies in its stage's folder."""
    return "model" if name == "rl" else name


def _count_revise(recipe: Recipe) -> str:
    r = recipe.revise
    texts = r.rounds * (r.candidates + (1 if r.critique else 0))
    return f"{r.prompts} red-team prompts x (1 answer + {texts} texts), {r.helpful} helpful answers"


def _count_reinforce(recipe: Recipe) -> str:
    """Steps and episodes; DPO has neither, it learns from the labels."""
    settings = recipe.reinforce
    online = [name for name in settings.algorithm if name != "dpo"]
    steps = f"{', '.join(online)}: {settings.steps} steps x {settings.episodes} episodes" if online else ""
    dpo = f"dpo: {settings.epochs} epochs of pairs" if "dpo" in settings.algorithm else ""
    return "; ".join(filter(None, (steps, dpo)))


STAGES: tuple[Stage, ...] = (
    Stage(
        1,
        "red_team",
        Prompt,
        _reads(),
        _red_team,
        lambda r: (
            f"prompts of {len(r.red_team.files)} files"
            + (f", {r.red_team.written} written by the model" if r.red_team.written else "")
        ),
        prompt_paths,
        version=2,
    ),
    Stage(
        2,
        "preflight",
        Checked,
        _reads(),
        _preflight,
        lambda r: f"check of the judge: {', '.join(r.judge.kinds)}",
        check_paths,
        roles=lambda r: ("judge",),
        version=3,
    ),
    Stage(
        3,
        "revise",
        Written,
        # The judge chooses among candidates; of one revision there is nothing to choose.
        lambda r: ("red_team", "preflight") if r.revise.candidates > 1 else ("red_team",),
        _revise,
        _count_revise,
        roles=lambda r: ("critic", "judge") if r.revise.candidates > 1 else ("critic",),
        version=7,
    ),
    Stage(
        4,
        "finetune",
        Step,
        _reads("revise"),
        lambda r, _: r.finetune.model_dump(),
        lambda r: f"{r.finetune.optimiser.epochs} epochs, {r.finetune.method}",
        version=5,
    ),
    Stage(
        5,
        "sample",
        Written,
        _reads("red_team", "finetune"),
        lambda r, _: [r.sample.model_dump(), _fine_tuned_on(r)],
        lambda r: f"{r.sample.prompts + r.sample.helpful} prompts x {r.sample.answers} answers",
        version=2,
    ),
    Stage(
        6,
        "label",
        Label,
        _reads("preflight", "sample"),
        _label,
        lambda r: f"up to {(r.sample.prompts + r.sample.helpful) * (r.label.pairs + r.label.crossed)} pairs",
        roles=lambda r: ("judge",),
        version=3,
    ),
    Stage(
        7,
        "reward",
        Step,
        # A gate learns from prompts without answers, too.
        lambda r: (*(("red_team",) if r.reward.gated else ()), "label", "finetune"),
        lambda r, _: r.reward.model_dump(),
        lambda r: f"{r.reward.optimiser.epochs} epochs of pairs",
        version=7,
    ),
    Stage(
        8,
        "reinforce",
        Step,
        lambda r: ("red_team", "finetune", *_learns_from(r)),
        _reinforce,
        _count_reinforce,
        _shaping_files,
        roles=lambda r: ("judge",) if _guarded(r) else (),
        version=12,
        distributed=True,
    ),
    Stage(
        9,
        "evaluate",
        Verdict,
        _reads("red_team", "revise", "finetune", "reinforce"),
        _evaluate,
        lambda r: (
            f"{2 + len(rl_models(r))} models x {r.evaluate.prompts + r.evaluate.helpful} held-out prompts"
        ),
        _evaluator_paths,
        roles=lambda r: ("evaluator",),
        version=5,
    ),
)

BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}


@dataclass(frozen=True)
class Models:
    """The identities of the models that a run uses."""

    base: str
    roles: Mapping[RoleName, str]


def stage_key(
    stage: Stage,
    recipe: Recipe,
    constitution: Constitution,
    models: Models,
    inputs: Mapping[str, str],
    beside: Path,
) -> str:
    """The digest of all that the rows of `stage` depend on. `inputs` maps stage names to output digests."""
    files = [file_sha256(path) for path in stage.files(recipe, beside)]
    identities = [models.base, *([name, models.roles[name]] for name in stage.roles(recipe))]
    common = [stage.name, stage.version, recipe.seed, recipe.dtype, identities]
    return digest([common, stage.depends(recipe, constitution), dict(inputs), files])
