"""What all groups of settings have in common, and the group that most of them hold: how a text is sampled."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, given: Any) -> Any:
        """A group that is given in part keeps its own defaults for the rest, not those of its class."""
        if not isinstance(given, dict):
            return given
        groups = {
            name: _merged(field.default.model_dump(), given[name])
            for name, field in cls.model_fields.items()
            if isinstance(field.default, BaseModel) and isinstance(given.get(name), dict)
        }
        return {**given, **groups}


def _merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, group by group."""
    inner = {
        name: _merged(defaults[name], value)
        for name, value in given.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return {**defaults, **given, **inner}


class Sampling(Settings):
    """How a text is sampled."""

    max_tokens: int = Field(default=64, ge=1, description="New tokens at the most")
    temperature: float = Field(default=1.0, ge=0, le=5, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus: smallest set of this probability")
