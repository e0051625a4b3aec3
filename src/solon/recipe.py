"""One validated tree of settings: a whole run in a file. Imports no torch, so a dry run answers at once.

Every field is documented where it is declared. An unknown key is an error, and settings that do not
fit together are refused at load with the keys and the fix.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from solon import shipped
from solon.errors import ProblemsError, UsageError
from solon.judge_settings import JudgeSettings
from solon.roles import Role, RoleName
from solon.settings import Sampling, Settings
from solon.training_settings import Finetune, Reinforce, Reward
from solon.yamlfile import Document, load, parse, validate

JudgeName = Literal["judge", "evaluator"]


class Source(Settings):
    """A file of prompts: a shipped set's name, or a JSONL, JSON, CSV, Parquet or plain text file."""

    file: str = Field(description="Name of a shipped set, or a path (relative to the recipe)")
    column: str = Field(default="text", description="The column or key that holds the prompt")
    category: str = Field(default="category", description="The column of the topic, if there is one")

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_name(cls, given: Any) -> Any:
        return {"file": given} if isinstance(given, str) else given


class RedTeam(Settings):
    """Prompts: harmful ones to answer and revise, ordinary ones to stay helpful on."""

    sources: tuple[Source, ...] = Field(default=(Source(file="red_team"),), min_length=1)
    helpful: tuple[Source, ...] = (Source(file="helpful"),)
    written: int = Field(default=0, ge=0, description="Red-team prompts that the model writes itself")
    examples: int = Field(default=4, ge=1, description="Few-shot examples shown for each written prompt")
    sampling: Sampling = Sampling(max_tokens=32, temperature=1.0, top_p=0.95)
    heldout: float = Field(default=0.3, ge=0, lt=1, description="Share kept for evaluation, by stable hash")
    heldout_sources: tuple[Source, ...] = Field(
        default=(), description="Red-team prompts that are all kept for evaluation"
    )
    heldout_helpful: tuple[Source, ...] = Field(
        default=(), description="Ordinary prompts that are all kept for evaluation"
    )
    max_similarity: float = Field(
        default=0.6, gt=0, le=1, description="Word-trigram Jaccard above which a prompt is a near-duplicate"
    )
    max_words: int = Field(default=200, ge=1, description="Longer prompts are refused with their line")

    @field_validator("sources", "helpful", "heldout_sources", "heldout_helpful", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str | dict) else given

    @property
    def files(self) -> tuple[Source, ...]:
        """All files that prompts are read from."""
        return (*self.sources, *self.helpful, *self.heldout_sources, *self.heldout_helpful)


class Revise(Settings):
    """Answers, then rounds of critique and revision."""

    prompts: int = Field(default=64, ge=1, description="Red-team training prompts to answer and revise")
    helpful: int = Field(default=48, ge=0, description="Helpful training prompts to answer")
    tries: int = Field(
        default=1, ge=1, description="Answers asked of a helpful prompt at the most, until one does not evade"
    )
    rounds: int = Field(default=2, ge=1, description="Rounds of critique and revision, a principle each")
    critique: bool = Field(default=True, description="False: revise directly, without a critique")
    ask: Literal["conversation", "question"] = Field(
        default="conversation",
        description="conversation: question, answer and request as turns; question: the request, then the "
        "question alone, for models too small to rework a text that stands before them",
    )
    candidates: int = Field(default=1, ge=1, description="Revisions sampled; the judge keeps the best")
    demonstrations: int = Field(default=2, ge=0, description="Worked examples shown, drawn anew each time")
    answer: Sampling = Sampling(max_tokens=64, temperature=0.7, top_p=0.95)
    critic: Sampling = Sampling(max_tokens=48, temperature=0.7, top_p=0.95)
    revision: Sampling = Sampling(max_tokens=64, temperature=0.7, top_p=0.95)
    sentences: int | None = Field(
        default=None,
        ge=1,
        description="Cut a revision behind so many sentences, or before one that it repeats; null: keep all",
    )
    max_copied: float = Field(
        default=0.5, gt=0, le=1, description="Share of a demonstration's word trigrams that counts as a copy"
    )
    batch: int = Field(default=32, ge=1, description="Prompts a batch; a finished batch survives a crash")


class Sample(Settings):
    """Answers of the SL model, to be compared."""

    prompts: int = Field(default=96, ge=1, description="Red-team training prompts")
    helpful: int = Field(default=32, ge=0, description="Helpful training prompts")
    answers: int = Field(default=4, ge=2, description="Answers a prompt")
    sampling: Sampling = Sampling(max_tokens=64, temperature=1.0)
    batch: int = Field(default=64, ge=1, description="Prompts a batch")


class LabelSettings(Settings):
    """Which pairs are compared."""

    pairs: int = Field(default=4, ge=1, description="Pairs a prompt, drawn from all pairs of its answers")
    margin: float = Field(
        default=0.0, ge=0, lt=0.5, description="Pairs whose probability is closer to one half train nothing"
    )
    crossed: int = Field(
        default=0,
        ge=0,
        description="Pairs a prompt of an answer and a refusal that was sampled for another prompt",
    )
    effects: int = Field(
        default=48, ge=0, description="Pairs on which every principle is asked, to see what each one does"
    )
    batch: int = Field(default=32, ge=1, description="Prompts a batch")


class Evaluate(Settings):
    """The comparison of base, SL and RL model on held-out prompts."""

    prompts: int = Field(default=48, ge=2, description="Held-out red-team prompts")
    helpful: int = Field(default=32, ge=2, description="Held-out helpful prompts")
    max_tokens: int = Field(default=64, ge=1, description="Greedy answers of this length at the most")
    bootstrap: int = Field(
        default=1000, ge=100, description="Resamples of the prompts for the ratings' intervals"
    )
    batch: int = Field(default=128, ge=1, description="Prompts a batch")


class Recipe(Settings):
    """A whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)
    seed: int = Field(default=0, ge=0, lt=2**32, description="Below numpy's limit, which transformers meets")
    model: str = Field(default="embedded", description="`embedded`, a Hugging Face name, or a folder")
    constitution: str = Field(default="harmless", description="A shipped name, or a path")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the processor computes in it, else float32"
    )
    batch_tokens: int = Field(default=8192, ge=256, description="Tokens an inference batch holds at the most")
    red_team: RedTeam = RedTeam()
    revise: Revise = Revise()
    finetune: Finetune = Finetune()
    sample: Sample = Sample()
    critic: Role = Role()
    judge: JudgeSettings = JudgeSettings()
    evaluator: JudgeSettings | None = Field(
        default=None, description="The judge of the evaluation, in full; none: the same settings as `judge`"
    )
    label: LabelSettings = LabelSettings()
    reward: Reward = Reward()
    reinforce: Reinforce = Reinforce()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _revisions_are_judged(self) -> "Recipe":
        if self.finetune.best < 1 and self.revise.candidates == 1:
            raise ValueError(
                "finetune.best ranks revisions by the judge, who is not asked about a single candidate: "
                "set revise.candidates to 2 or more, or finetune.best: 1"
            )
        return self

    @model_validator(mode="after")
    def _critic_fits(self) -> "Recipe":
        read = (self.reward.pooling, self.reward.depth, self.reward.gated)
        if self.reinforce.critic == "adapter" and read != ("last", 1.0, False):
            raise ValueError(
                "reinforce.critic: adapter reads every token's last state with the reward model's head: it "
                "wants reward.pooling: last, reward.depth: 1 and a reward.head without a gate. Set these, or "
                "reinforce.critic: head"
            )
        return self

    def role(self, name: RoleName) -> Role:
        return self.critic if name == "critic" else self.judge_of(name)

    def section(self, name: RoleName) -> RoleName:
        """Where a role's settings stand: an evaluator without its own has the judge's, and its limits."""
        return "judge" if name == "evaluator" and self.evaluator is None else name

    def judge_of(self, name: JudgeName) -> JudgeSettings:
        """The judge that labels, or the one that evaluates."""
        return self.evaluator if name == "evaluator" and self.evaluator else self.judge


def load_recipe(name_or_path: str | Path, overrides: tuple[str, ...] = ()) -> tuple[Recipe, Path]:
    """A recipe with `a.b=c` overrides applied, and its path (file names in it are relative to that).

    Raises:
        UsageError: no such file, or an override that is not `key=value`.
        ProblemsError: every unknown key and bad value, with its line.
    """
    path = shipped.find("recipes", name_or_path, ".yaml")
    document = load(path)
    for override in overrides:
        apply_override(document, override)
    return validate(document, Recipe), path


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every setting written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(document: Document, override: str) -> None:
    """Set one `a.b=c` in a document. Raises UsageError if it is not of that form, or c is no YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override}: write it as key=value, for instance --set revise.rounds=3.")
    try:
        value = parse(text, "--set").data
    except ProblemsError as error:
        what = error.problems[0].what
        raise UsageError(f"--set {key}: `{text[:80]}` is no YAML value: {what}. Quote it.") from error
    node: Any = document.data
    *parents, last = key.strip().split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UsageError(f"--set {override}: `{parent}` holds a single value and has no keys below it.")
    node[last] = value
    document.override((*parents, last))
