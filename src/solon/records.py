"""The frozen rows that flow from stage to stage.

Every row knows its parents (ids of the rows it came from), the principle it was made by, the
constitution's digest and its origin (the model, judge or file that produced it), so from any label
one can walk back to the prompt. The id is a digest of the content: the same row, the same id.
"""

from typing import Any, Literal, Self, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, model_validator

from solon.digest import digest

PromptKind = Literal["red_team", "helpful"]
Split = Literal["train", "heldout"]
TextKind = Literal["answer", "opening", "critique", "revision"]
Finish = Literal["stop", "length"]


class Row(BaseModel):
    """What all rows have in common. `id` is filled in from the content when it is left empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = ""
    parents: tuple[str, ...] = ()
    origin: str
    principle: str | None = None
    constitution: str | None = None

    @model_validator(mode="after")
    def _name_by_content(self) -> Self:
        if not self.id:
            content = self.model_dump(mode="json", exclude={"id"})
            object.__setattr__(self, "id", digest([type(self).__name__, content]))
        return self

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, under the id of its new content."""
        return type(self).model_validate({**self.model_dump(), "id": "", **changes})


class Prompt(Row):
    """A question to the model. `category` is the set's own word for its topic."""

    text: str
    kind: PromptKind
    category: str = ""
    split: Split


class Written(Row):
    """A text that a model wrote: an answer (round 0), or a round's critique or revision of it.

    `request` is the message that asked for it and `sampling` the settings (JSON); `number` tells several
    texts of one request apart. A revision among several candidates has its judge's `score`, the mean
    probability of beating the others and the text revised, and `better`, that of beating the prompt's first
    answer; `chosen` marks the one that the next round builds on. `unusable` names the filter that rejects it
    as training data; nothing is deleted.
    """

    prompt_id: str
    prompt: str
    prompt_kind: PromptKind
    kind: TextKind
    round: int = 0
    number: int = 0
    text: str
    request: str
    sampling: str
    tokens: int
    finish: Finish
    score: float | None = None
    better: float | None = None
    chosen: bool = True
    unusable: str | None = None


class Checked(Row):
    """What a judge said of an item whose better answer is known; `p_better` is the probability it got.

    `on` names the set of items and `source` the item in it. `flipped` is None for a judge without order.
    """

    kind: str
    on: str
    source: str
    p_better: float | None
    unscored: str | None
    flipped: bool | None
    truncated: bool


class Label(Row):
    """Two answers to a prompt, and the calibrated probability `p_a` that the principle prefers answer a.

    `p_a` is None when the judge could not tell (`unscored` says why), `dropped` says why a scored pair is
    left out: such pairs train nothing. `p_raw` is what the judge said before calibration, `asked` all the
    principles that were asked, `disagreement` the standard deviation of several asked judges or principles.
    `crossed`: one of the two is a refusal that was sampled for another prompt.
    """

    prompt_id: str
    prompt: str
    prompt_kind: PromptKind
    a_id: str
    b_id: str
    a: str
    b: str
    a_finish: Finish
    b_finish: Finish
    p_a: float | None
    p_raw: float | None = None
    asked: tuple[str, ...] = ()
    disagreement: float | None = None
    truncated: bool = False
    unscored: str | None = None
    dropped: str | None = None
    crossed: bool = False


class Verdict(Row):
    """A judge's comparison of two models' answers to one held-out prompt. `p_a`, `unscored` as in `Label`."""

    prompt_id: str
    on: PromptKind
    a_model: str
    b_model: str
    a_id: str
    b_id: str
    p_a: float | None
    unscored: str | None = None


PPO = "solon.ppo"  # The origin of the steps of our own PPO


class Step(Row):
    """One optimisation step of a trained model, with its metrics (JSON)."""

    step: int
    metrics: str


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def arrow_schema(row: type[Row]) -> pa.Schema:
    """The Parquet columns of a row type. Explicit, so that an all-empty column keeps its type."""
    return pa.schema([(name, _arrow_type(field.annotation)) for name, field in row.model_fields.items()])


def _arrow_type(annotation: Any) -> pa.DataType:
    if annotation in _ARROW:
        return _ARROW[annotation]
    if get_origin(annotation) is tuple:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    if get_origin(annotation) is Literal:
        return pa.string()
    kinds = [part for part in get_args(annotation) if part is not type(None)]
    return _arrow_type(kinds[0])
