"""Which of several revisions of a text is kept: a judge compares the candidates of all threads in one call.

So an engine on this machine reads each text once and fills its batches, and servers have as many requests
to work on as they can take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from solon.feedback.base import Judge, Question, preferences

Duels = Mapping[tuple[int, int], float | None]
"""The probability that answer i beats answer j > i; None where it could not be told."""


@dataclass(frozen=True)
class Candidates:
    """Revisions of a thread's text `before`, and its first answer.

    `about` is a question of the thread's prompt, principle and kind; its two answers are not read.
    """

    about: Question
    texts: tuple[str, ...]
    before: str
    first: str


@dataclass(frozen=True)
class Standing:
    """What the judge says of a candidate; None where it could not tell.

    `win`: the mean probability of beating the other candidates and the text before. `against`: of beating
    that text; `better`: the first answer.
    """

    win: float | None
    against: float | None
    better: float | None


def standings(judge: Judge, threads: Sequence[Candidates]) -> list[list[Standing]]:
    """Each thread's candidates, in their order."""
    asked = [_questions(thread) for thread in threads]
    told = iter(preferences([question for questions in asked for question in questions], judge.compare))
    return [
        _standings(thread, [next(told) for _ in questions])
        for thread, questions in zip(threads, asked, strict=True)
    ]


def _questions(thread: Candidates) -> list[Question]:
    """All duels of the candidates and the text before, then those with the first answer if it is another."""
    answers = (*thread.texts, thread.before)
    duels = [replace(thread.about, a=a, b=b) for a, b in combinations(answers, 2)]
    if thread.first == thread.before:
        return duels
    return [*duels, *(replace(thread.about, a=text, b=thread.first) for text in thread.texts)]


def _standings(thread: Candidates, said: Sequence[float | None]) -> list[Standing]:
    count = len(thread.texts)
    pairs = list(combinations(range(count + 1), 2))
    duels = dict(zip(pairs, said, strict=False))
    against = [duels[i, count] for i in range(count)]
    better = said[len(pairs) :] or against
    wins = mean_wins(duels, count + 1)
    return [Standing(*one) for one in zip(wins[:count], against, better, strict=True)]


def mean_wins(duels: Duels, count: int) -> list[float | None]:
    """Each of `count` answers' mean probability of beating the others; None where no duel of it is told."""
    won: list[list[float]] = [[] for _ in range(count)]
    for (i, j), p in duels.items():
        if p is not None:
            won[i].append(p)
            won[j].append(1.0 - p)
    return [sum(of_one) / len(of_one) if of_one else None for of_one in won]
