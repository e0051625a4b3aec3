"""Worked comparisons of the constitution as examples before a question, the better answer marked."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from solon.constitution import Comparison, Principle
from solon.digest import seed_from
from solon.engines.base import Conversation, Message
from solon.feedback.base import Question
from solon.feedback.options import CHOICES

Ask = Callable[[Question], str]


@dataclass(frozen=True)
class Demonstrated:
    """Shows `count` comparisons, the same for every question, so that a model reads them once.

    They are drawn by the seed, as many with the better answer first as second (one more of one of them if
    `count` is odd). A question that is among them is shown another example in its place.
    """

    comparisons: tuple[Comparison, ...]
    principles: tuple[Principle, ...]
    count: int
    seed: int

    def before(self, question: Question, ask: Ask) -> Conversation:
        """The examples as turns: each asked as `ask` words it, and answered by its option."""
        order = list(self.comparisons)
        random.Random(seed_from(self.seed, "shown")).shuffle(order)
        turns: list[Message] = []
        for number, comparison in enumerate([c for c in order if c.prompt != question.prompt][: self.count]):
            first = number % 2 == self.seed % 2
            a, b = (comparison.better, comparison.worse)[:: 1 if first else -1]
            asked = Question(self._principle(comparison.principle), comparison.prompt, a, b)
            turns.append(Message("user", ask(asked)))
            turns.append(Message("assistant", CHOICES[0] if first else CHOICES[1]))
        return tuple(turns)

    def _principle(self, name: str) -> Principle:
        return next(p for p in self.principles if p.id == name)


def demonstrated(
    comparisons: Sequence[Comparison], principles: Sequence[Principle], count: int, seed: int
) -> Demonstrated:
    return Demonstrated(tuple(comparisons), tuple(principles), count, seed)
