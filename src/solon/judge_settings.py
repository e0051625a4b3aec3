"""The settings of a judge: which kinds are allowed, how each of them works, and how it is checked."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from solon.roles import Role
from solon.settings import Sampling, Settings

JudgeKind = Literal["linear_probe", "choice", "chain_of_thought", "likelihood", "score", "ensemble"]


class ProbeSettings(Settings):
    """linear_probe: what cross-validation chooses from. One value in each list leaves no choice."""

    layers: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.3, 0.47, 0.6, 0.8), min_length=1, description="Depths that may be read"
    )
    poolings: tuple[Literal["mean", "last", "start"], ...] = Field(
        default=("mean",), min_length=1, description="Over an answer's tokens: mean, last, or the first 16"
    )
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0, 10.0, 100.0), min_length=1, description="Weight penalty on standardised features"
    )
    own: tuple[Annotated[float, Field(ge=0, le=100)], ...] = Field(
        default=(0.0, 1.0),
        min_length=1,
        description="How far each principle's direction may stray from the common one; 0: not at all",
    )
    kinds: tuple[Annotated[float, Field(ge=0, le=100)], ...] = Field(
        # Not for cross-validation to choose: comparisons of a principle for any prompt do not say what kind
        # theirs is, so they cannot show what is lost where the kinds have one direction.
        default=(4.0,),
        min_length=1,
        description="How far the direction for red-team prompts may stray from that for ordinary ones",
    )
    off_topic: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of comparisons that also teach: better than a good answer to another question",
    )


class LikelihoodSettings(Settings):
    """likelihood: what the constitution's comparisons choose from."""

    reductions: tuple[Literal["sum", "mean", "first"], ...] = Field(
        default=("sum", "mean", "first"),
        min_length=1,
        description="Over tokens: all, per token, the first 16",
    )
    against: tuple[Literal["nothing", "contrary"], ...] = Field(
        default=("nothing", "contrary"), min_length=1, description="What the principle is measured against"
    )


class ThinkingSettings(Settings):
    """chain_of_thought: how reasons are sampled."""

    sampling: Sampling = Sampling(max_tokens=96, temperature=0.7, top_p=0.95)
    samples: int = Field(default=1, ge=1, description="Reasonings in each order; their mean counts")
    clamp: tuple[float, float] = Field(
        default=(0.4, 0.6), description="Probabilities are held within these (the paper's 40-60 %)"
    )

    @model_validator(mode="after")
    def _fits(self) -> "ThinkingSettings":
        low, high = self.clamp
        if not (0 <= low < 0.5 < high <= 1 and abs(low + high - 1) < 1e-9):
            raise ValueError(
                f"clamp must lie evenly around one half, such as [0.4, 0.6], not [{low}, {high}]"
            )
        return self


class JudgeSettings(Role):
    """Who says which answer the constitution prefers."""

    kind: tuple[JudgeKind, ...] = Field(
        default=("linear_probe",),
        min_length=1,
        description="One judge, or a list: the check picks the best of them",
    )
    principles: int = Field(
        default=1, ge=1, description="Principles asked about each pair; their mean counts"
    )
    demonstrations: int = Field(default=2, ge=0, description="choice: worked comparisons shown")
    probe: ProbeSettings = ProbeSettings()
    likelihood: LikelihoodSettings = LikelihoodSettings()
    thinking: ThinkingSettings = ThinkingSettings()
    members: tuple[JudgeKind, ...] = Field(
        default=("linear_probe", "likelihood"), min_length=2, description="ensemble: the judges it averages"
    )
    folds: int = Field(default=5, ge=2, description="Folds of the constitution's comparisons in the check")
    check: str = Field(default="", description="A file of pairs with a known better answer, for the check")
    check_pairs: int = Field(default=200, ge=1, description="Pairs of that file that are read at the most")
    calibration: Literal["temperature", "isotonic", "none"] = Field(
        default="temperature", description="Map of the probabilities, fitted on the check"
    )
    allow_weak: bool = Field(
        default=False, description="Go on with a judge that may be no better than chance"
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> "JudgeSettings":
        if "ensemble" in self.members:
            raise ValueError("members: an ensemble cannot be its own member; name other judges")
        return self

    @property
    def kinds(self) -> tuple[JudgeKind, ...]:
        """Those of `kind` that the engine can do; `choice` if it can do none of them.

        Only a local engine shows hidden states, which linear_probe reads.
        """
        if self.engine == "local":
            return self.kind
        able = {"linear_probe": False, "ensemble": "linear_probe" not in self.members}
        return tuple(kind for kind in self.kind if able.get(kind, True)) or ("choice",)

    @property
    def all_kinds(self) -> frozenset[JudgeKind]:
        """The kinds that are opened, the members of an ensemble among them."""
        return frozenset({*self.kinds, *(self.members if "ensemble" in self.kinds else ())})
