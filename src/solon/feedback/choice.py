"""The paper's multiple choice (Bai et al. 2022, sec. 4.1): "(A)" or "(B)", by log-probabilities.

Asked in both orders and averaged, because models prefer a position. Below about a billion parameters
this judge is noise; its check says so. The options' log-probabilities are normalised over the two.
"""

import random
from collections.abc import Sequence

from solon.constitution import Comparison, Principle
from solon.digest import seed_from
from solon.engines.base import Conversation, Engine, Message, Score, ScoreRequest
from solon.feedback.base import Judgement, Question, sigmoid, unanswerable
from solon.templates import fill

OPTIONS = ("(A)", "(B)")


class ChoiceJudge:
    """Asks a model to choose, after `demonstrations` worked comparisons drawn by the question."""

    def __init__(
        self,
        engine: Engine,
        comparisons: Sequence[Comparison],
        principles: Sequence[Principle],
        demonstrations: int,
        seed: int,
    ) -> None:
        self._engine = engine
        self._comparisons = tuple(comparisons)
        self._principles = {p.id: p for p in principles}
        self._count = demonstrations
        self._seed = seed

    @property
    def name(self) -> str:
        return f"choice:{self._engine.name}"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        """Mean over both orders of P(first) (paper, sec. 4.1), two scores an order."""
        asked = [q for q in questions if unanswerable(q) is None]
        requests = [r for question in asked for r in self._requests(question)]
        scores = iter(self._engine.score(requests))
        answers = {}
        for question in asked:
            first, second, swapped_first, swapped_second = (next(scores) for _ in range(4))
            straight = _preference(first, second)
            swapped = 1.0 - _preference(swapped_first, swapped_second)
            answers[question] = Judgement((straight + swapped) / 2)
        return [answers.get(q) or Judgement(None, unanswerable(q)) for q in questions]

    def _requests(self, question: Question) -> list[ScoreRequest]:
        shown = self._demonstrations(question)
        orders = [(question.a, question.b), (question.b, question.a)]
        return [
            ScoreRequest((*shown, Message("user", _ask(question.principle, question.prompt, a, b))), option)
            for a, b in orders
            for option in OPTIONS
        ]

    def _demonstrations(self, question: Question) -> Conversation:
        """Worked comparisons with the better answer in a random place; never the one that is asked."""
        rng = random.Random(seed_from(self._seed, question.prompt, question.a, question.b))
        others = [c for c in self._comparisons if c.prompt != question.prompt]
        turns: list[Message] = []
        for comparison in rng.sample(others, min(self._count, len(others))):
            better_first = rng.random() < 0.5
            sides = (comparison.better, comparison.worse)
            a, b = sides if better_first else sides[::-1]
            principle = self._principles[comparison.principle]
            turns.append(Message("user", _ask(principle, comparison.prompt, a, b)))
            turns.append(Message("assistant", OPTIONS[0] if better_first else OPTIONS[1]))
        return tuple(turns)


def _ask(principle: Principle, prompt: str, a: str, b: str) -> str:
    return fill("choice", prompt=prompt, a=a, b=b, question=principle.question)


def _preference(first: Score, second: Score) -> float:
    """P(first option), normalised over the two options."""
    return sigmoid(first.total - second.total)
