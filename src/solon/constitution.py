"""A constitution: the principles and sample prompts that a model is trained on.

Loading validates everything and reports every problem at once, with file, line and fix. A digest
identifies the text, whole or in the parts that one stage depends on; every row carries it.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from solon import shipped
from solon.digest import digest
from solon.errors import Problem, ProblemsError, UsageError, did_you_mean
from solon.faults import Location
from solon.records import PromptKind
from solon.yamlfile import Document, load, validate

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Purpose = Literal["training", "evaluation"]
AskedOn = Literal["any", PromptKind]
MIN_COMPARISONS = 8  # Below this a linear probe is not even tried


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Principle(_Frozen):
    """One rule, in the three wordings that the method asks it in."""

    id: Name
    about: Text = Field(description="What it is about, in a few words")
    critique: Text = Field(description="The request to criticise an answer by this principle")
    revision: Text = Field(description="The request to rewrite the answer")
    question: Text = Field(description="The question which of two answers is better")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="How often it is drawn")
    purpose: Purpose = "training"
    asked_on: AskedOn = Field(
        default="any",
        description="Which prompts it is asked on: red-team prompts, ordinary (helpful) ones, or any",
    )


class Revised(_Frozen):
    """A worked example of critique and revision."""

    principle: Name
    prompt: Text
    answer: Text
    critique: Text
    revision: Text


class Comparison(_Frozen):
    """A worked example of a comparison, with the better answer marked."""

    principle: Name
    prompt: Text
    better: Text
    worse: Text
    flaw: str = Field(default="", description="What is wrong with the worse answer, for the reader")


class Demonstrations(_Frozen):
    """The sample prompts that belong to a constitution."""

    revisions: tuple[Revised, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def prompts(self) -> frozenset[str]:
        """What is asked in them: judges and critics have read answers to these."""
        return frozenset([*(r.prompt for r in self.revisions), *(c.prompt for c in self.comparisons)])


class Constitution(_Frozen):
    """Principles and demonstrations, checked together."""

    name: Name
    version: Annotated[str, StringConstraints(min_length=1, max_length=32)]
    description: str = ""
    principles: tuple[Principle, ...]
    demonstrations: Demonstrations = Demonstrations()

    @property
    def digest(self) -> str:
        """Identifies the whole text; changes with any letter of it."""
        return digest(self.model_dump())

    def of(self, purpose: Purpose, kind: PromptKind | None = None) -> tuple[Principle, ...]:
        """The principles of a purpose; those that are asked on prompts of this kind, if one is given."""
        return tuple(p for p in self.principles if p.purpose == purpose and asked_on(p, kind))

    def principle(self, name: str) -> Principle:
        """The principle of that id. Raises KeyError if there is none."""
        return {p.id: p for p in self.principles}[name]

    def only(self, names: Sequence[str]) -> "Constitution":
        """The same constitution with these principles alone, and the worked examples that are theirs.

        Raises:
            UsageError: there is no principle of a name.
        """
        ids = [p.id for p in self.principles]
        for name in names:
            if name not in ids:
                hint = did_you_mean(name, ids, f"There are: {', '.join(ids)}.")
                raise UsageError(f"the constitution {self.name} has no principle `{name}`. {hint}")
        shown = self.demonstrations
        kept = Demonstrations(
            revisions=tuple(r for r in shown.revisions if r.principle in names),
            comparisons=tuple(c for c in shown.comparisons if c.principle in names),
        )
        principles = tuple(p for p in self.principles if p.id in names)
        return self.model_copy(update={"principles": principles, "demonstrations": kept})

    def comparisons(self, purpose: Purpose) -> tuple[Comparison, ...]:
        """The worked comparisons whose principle serves `purpose`."""
        ids = {p.id for p in self.of(purpose)}
        return tuple(c for c in self.demonstrations.comparisons if c.principle in ids)

    def draw(
        self, rng: random.Random, purpose: Purpose = "training", kind: PromptKind | None = None
    ) -> Principle:
        """One of the principles that are asked on such prompts, at random, in proportion to the weights."""
        principles = self.of(purpose, kind)
        return rng.choices(principles, weights=[p.weight for p in principles])[0]

    def advice(self) -> Iterator[str]:
        """What is allowed and yet will hurt: a probe without enough comparisons, no evaluation."""
        for purpose in get_args(Purpose):
            count = len(self.comparisons(purpose))
            if count < MIN_COMPARISONS:
                yield (
                    f"{count} comparisons for {purpose} principles; the linear_probe judge needs "
                    f"{MIN_COMPARISONS} and reads well from about 40."
                )
        if not self.of("evaluation"):
            yield "no principle has `purpose: evaluation`, so the stage evaluate cannot run."


def asked_on(principle: Principle, kind: PromptKind | None) -> bool:
    """Whether a principle is asked on prompts of this kind; None stands for prompts of unknown kind."""
    return kind is None or principle.asked_on in ("any", kind)


def load_constitution(name_or_path: str | Path) -> Constitution:
    """A shipped constitution by its name, or any by its path.

    Raises:
        UsageError: no such file or name.
        ProblemsError: every fault of the file, with its line.
    """
    document = load(shipped.find("constitutions", name_or_path, ".yaml"))
    constitution = validate(document, Constitution)
    problems = list(_inconsistencies(constitution, document))
    if problems:
        raise ProblemsError(problems)
    return constitution


def dump(constitution: Constitution) -> str:
    """The constitution as YAML that loads back to an equal one."""
    data = constitution.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _inconsistencies(constitution: Constitution, document: Document) -> Iterator[Problem]:
    """Faults that no single field shows."""
    yield from _repeated_principles(constitution.principles, document)
    if not constitution.of("training"):
        fix = "Mark at least one with `purpose: training`."
        yield document.problem(("principles",), "no principle is for training", fix)
    for purpose, kind in product(get_args(Purpose), get_args(PromptKind)):
        if constitution.of(purpose) and not constitution.of(purpose, kind):
            what = f"no {purpose} principle is asked on {kind} prompts"
            fix = f"Give at least one `asked_on: {kind}` or `asked_on: any`."
            yield document.problem(("principles",), what, fix)
    ids = {p.id for p in constitution.principles}
    shown = constitution.demonstrations
    groups: tuple[tuple[str, Sequence[Revised | Comparison]], ...] = (
        ("revisions", shown.revisions),
        ("comparisons", shown.comparisons),
    )
    for group, items in groups:
        for index, item in enumerate(items):
            if item.principle not in ids:
                at: Location = ("demonstrations", group, index, "principle")
                what = f"there is no principle `{item.principle}`"
                yield document.problem(at, what, "Name the id of a principle of this file.")
    yield from _faulty_comparisons(shown.comparisons, document)


def _repeated_principles(principles: Sequence[Principle], document: Document) -> Iterator[Problem]:
    for field in ("id", "critique", "revision", "question"):
        first: dict[str, str] = {}
        for index, principle in enumerate(principles):
            value = str(getattr(principle, field))
            if value in first:
                if field == "id":
                    what, fix = f"two principles have the id `{value}`", "Rename one or remove it."
                else:
                    what = f"the {field} of `{principle.id}` repeats that of `{first[value]}`"
                    fix = "Word it anew or remove it."
                yield document.problem(("principles", index, field), what, fix)
            first.setdefault(value, principle.id)


def _faulty_comparisons(comparisons: Sequence[Comparison], document: Document) -> Iterator[Problem]:
    counts = Counter((c.prompt, c.better, c.worse) for c in comparisons)
    for index, comparison in enumerate(comparisons):
        at: Location = ("demonstrations", "comparisons", index)
        if comparison.better == comparison.worse:
            yield document.problem(at, "better and worse are the same text", "Write two different answers.")
        if counts[comparison.prompt, comparison.better, comparison.worse] > 1:
            yield document.problem(at, "this comparison stands twice", "Remove one of them.")
