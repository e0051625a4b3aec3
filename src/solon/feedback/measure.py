"""Asking a judge about answers with a known better one, and what came of it, pair by pair."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from solon.constitution import Comparison, Constitution, Principle, Purpose
from solon.digest import seed_from
from solon.engines.base import Conversation
from solon.errors import UsageError
from solon.feedback.base import Judge, Judgement, Question
from solon.feedback.calibration import Calibrated
from solon.feedback.ensemble import Ensemble, OverPrinciples, average
from solon.feedback.pairs import KnownPair, read_pairs
from solon.text import words

_ONE_FOLD = "all comparisons fall into one fold"


@dataclass(frozen=True)
class Item:
    """A question with a known answer: `better` and `worse`, and the principle that it is asked by."""

    principle: Principle
    prompt: str
    better: str
    worse: str
    source: str
    history: Conversation = ()

    def question(self, better_first: bool = True) -> Question:
        a, b = (self.better, self.worse)[:: 1 if better_first else -1]
        return Question(self.principle, self.prompt, a, b, self.history)


@dataclass(frozen=True)
class Result:
    """What a judge said of an item: `p_better` is the probability that it gave to the better answer.

    None where it could not tell (`unscored` says why). `flipped`: it chose the same position in both
    orders; None for a judge without order. Lengths are in words.
    """

    source: str
    principle: str
    p_better: float | None
    unscored: str | None
    flipped: bool | None
    truncated: bool
    words_better: int
    words_worse: int


@runtime_checkable
class Taught(Protocol):
    """A judge that is fitted on comparisons: what it says of each when it was not fitted on it."""

    def held_out(self) -> list[float | None]: ...


def items_of(comparisons: Sequence[Comparison], constitution: Constitution) -> list[Item]:
    """The constitution's own comparisons as items, in their order."""
    return [
        Item(
            constitution.principle(c.principle), c.prompt, c.better, c.worse, f"{constitution.name}:{number}"
        )
        for number, c in enumerate(comparisons)
    ]


def items_of_pairs(
    pairs: Sequence[KnownPair], constitution: Constitution, purpose: Purpose, seed: int
) -> list[Item]:
    """Pairs of a file as items, each with one principle drawn for it."""
    return [
        Item(_drawn(constitution, purpose, seed, p), p.prompt, p.chosen, p.rejected, p.source, p.history)
        for p in pairs
    ]


def items_of_file(
    path: Path, limit: int | None, constitution: Constitution, purpose: Purpose, seed: int
) -> tuple[list[Item], dict[str, int]]:
    """The pairs of a file as items, and how many records were left out, by reason.

    Raises:
        UsageError: the file is faulty, or has no usable pair.
    """
    pairs, left_out = read_pairs(path, limit)
    if not pairs:
        reasons = "; ".join(f"{n} × {reason}" for reason, n in left_out.items())
        raise UsageError(f"{path}: no pair can be used ({reasons}). Give a file with usable pairs.")
    return items_of_pairs(pairs, constitution, purpose, seed), left_out


def _drawn(constitution: Constitution, purpose: Purpose, seed: int, pair: KnownPair) -> Principle:
    return constitution.draw(random.Random(seed_from(seed, pair.source, "principle")), purpose)


def ask(judge: Judge, items: Sequence[Item], seed: int) -> list[Result]:
    """The judge's answers; which side the better answer stands on is drawn by the seed."""
    first = [seed_from(seed, item.source, item.prompt, "side") % 2 == 0 for item in items]
    questions = [item.question(side) for item, side in zip(items, first, strict=True)]
    return [
        _result(item, judgement, side)
        for item, judgement, side in zip(items, judge.compare(questions), first, strict=True)
    ]


def ask_own(judge: Judge, items: Sequence[Item], seed: int) -> list[Result]:
    """As `ask`, for the comparisons that the judge was taught by: each without having been taught by it."""
    judgements = list(_held_out(judge, items, seed))
    return [_result(item, judgement, True) for item, judgement in zip(items, judgements, strict=True)]


def _held_out(judge: Judge, items: Sequence[Item], seed: int) -> Iterator[Judgement]:
    """Judgements with the better answer as a."""
    if isinstance(judge, Calibrated):
        yield from (judge.calibrate(judgement) for judgement in _held_out(judge.judge, items, seed))
    elif isinstance(judge, OverPrinciples) and isinstance(judge.judge, Taught | Ensemble):
        # A fitted judge is checked by each comparison's own principle: that is what the comparison is about.
        yield from _held_out(judge.judge, items, seed)
    elif isinstance(judge, Ensemble):
        columns = [list(_held_out(member, items, seed)) for member in judge.members]
        yield from (average(row) for row in zip(*columns, strict=True))
    elif isinstance(judge, Taught):
        yield from (Judgement(p, None if p is not None else _ONE_FOLD) for p in judge.held_out())
    else:
        yield from judge.compare([item.question() for item in items])


def _result(item: Item, judgement: Judgement, better_is_a: bool) -> Result:
    p = judgement.p_a
    return Result(
        item.source,
        item.principle.id,
        p if p is None or better_is_a else 1.0 - p,
        judgement.unscored,
        judgement.flipped,
        judgement.truncated,
        len(words(item.better)),
        len(words(item.worse)),
    )
