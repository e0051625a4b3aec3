"""Which examples the report shows, and how they are laid out.

Examples are taken in the order of the prompts' ids, which are content digests: an arbitrary order that
nobody chose, so good and bad examples appear as often as they are.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from solon.records import PromptKind, Verdict, Written
from solon.report.worddiff import Piece, word_diff
from solon.report.wording import NAMES

_LONGEST = 2_000
MODELS = tuple(NAMES)


@dataclass(frozen=True)
class Round:
    """One round: the text it started from, the critique, the revision, and what that changed."""

    number: int
    before: str
    principle: str | None
    critique: str | None
    diff: list[Piece]
    rejected: str | None
    candidates: int


@dataclass(frozen=True)
class Thread:
    """A red-team prompt and its way through the rounds."""

    prompt: str
    rounds: list[Round]

    @property
    def rejected(self) -> bool:
        return any(r.rejected for r in self.rounds)


@dataclass(frozen=True)
class Panel:
    """A held-out prompt and each model's answer; the judge's preferences for it in words."""

    prompt: str
    answers: dict[str, str]
    preferences: list[tuple[str, str, float]]


def threads(rows: Sequence[Written], count: int = 6, rejected: int = 2) -> list[Thread]:
    """Up to `count` revised prompts, `rejected` of them with a filtered revision where there are such."""
    by_prompt: dict[str, list[Written]] = defaultdict(list)
    for row in rows:
        if row.prompt_kind == "red_team":
            by_prompt[row.prompt_id].append(row)
    found = [_thread(by_prompt[prompt]) for prompt in sorted(by_prompt)]
    found = [thread for thread in found if thread.rounds]
    bad = [thread for thread in found if thread.rejected][:rejected]
    good = [thread for thread in found if not thread.rejected][: count - len(bad)]
    return [*good, *bad]


def _thread(rows: Sequence[Written]) -> Thread:
    answer = next(row for row in rows if row.kind == "answer")
    current, rounds = answer.text, []
    for number in sorted({row.round for row in rows if row.kind == "revision"}):
        here = [row for row in rows if row.round == number]
        revisions = [row for row in here if row.kind == "revision"]
        critique = next((row.text for row in here if row.kind == "critique"), None)
        kept = next((row for row in revisions if row.chosen), revisions[0])
        rounds.append(_round(number, current, kept, critique, len(revisions)))
        # The next round builds on the last text that no filter rejected.
        current = current if kept.unusable else kept.text
    return Thread(answer.prompt, rounds)


def _round(number: int, before: str, kept: Written, critique: str | None, candidates: int) -> Round:
    return Round(
        number=number,
        before=shortened(before),
        principle=kept.principle,
        critique=shortened(critique) if critique is not None else None,
        diff=word_diff(shortened(before), shortened(kept.text)),
        rejected=kept.unusable,
        candidates=candidates,
    )


def panels(
    answers: Sequence[Written], verdicts: Sequence[Verdict], on: PromptKind, count: int
) -> list[Panel]:
    """Up to `count` held-out prompts of one kind with the models' answers side by side."""
    texts: dict[str, dict[str, Written]] = defaultdict(dict)
    for answer in answers:
        if answer.prompt_kind == on and answer.origin in MODELS:
            texts[answer.prompt_id][answer.origin] = answer
    return [_panel(prompt, texts[prompt], verdicts) for prompt in sorted(texts)[:count]]


def _panel(prompt_id: str, by_model: dict[str, Written], verdicts: Sequence[Verdict]) -> Panel:
    preferences = [
        (v.a_model, v.b_model, v.p_a) for v in verdicts if v.prompt_id == prompt_id and v.p_a is not None
    ]
    shown = {model: shortened(by_model[model].text) for model in MODELS if model in by_model}
    return Panel(next(iter(by_model.values())).prompt, shown, preferences)


def rejections(rows: Sequence[Written]) -> dict[str, int]:
    """How many kept revisions each filter rejected, the most frequent first."""
    revisions = (row for row in rows if row.kind == "revision" and row.chosen)
    return dict(Counter(row.unusable for row in revisions if row.unusable).most_common())


def shortened(text: str) -> str:
    """The text, cut with a word about it where it is too long to read on a page."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more characters)"
