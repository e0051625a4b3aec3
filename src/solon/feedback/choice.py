"""The paper's multiple choice (Bai et al. 2022, sec. 4.1): "(A)" or "(B)", by log-probabilities.

Asked in both orders and averaged, because models prefer a position. Below about a billion parameters
this judge is little better than chance; its check says so. The principle is worded after the two answers:
questions about one pair then start alike, and a local model reads the pair once for all of its principles.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from solon.engines.base import Conversation, Engine, Message
from solon.feedback.base import Judgement, Question, fit_to_context, judged
from solon.feedback.demonstrated import Demonstrated
from solon.feedback.options import CHOICES, UNTOLD, probabilities
from solon.templates import fill

_ROOM = 8  # Tokens for an option behind the question


class ChoiceJudge:
    """Asks a model to choose, after the worked comparisons of `shown`."""

    def __init__(self, engine: Engine, shown: Demonstrated) -> None:
        self._engine = engine
        self._shown = shown

    @property
    def name(self) -> str:
        return f"choice:{self._engine.name}"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        """Mean over both orders of P(a) (paper, sec. 4.1).

        Raises:
            RunError: the model cannot write the options, or its log-probabilities are no numbers.
        """
        return judged(questions, self._compare)

    def _compare(self, questions: Sequence[Question]) -> list[Judgement]:
        fitted = [fit_to_context(q, self._engine, self._talk, _ROOM) for q in questions]
        asked = [q for q, problem, _ in fitted if problem is None]
        orders = [(self._talk(order), "") for q in asked for order in (q, swapped(q))]
        straight_and_swapped = iter(probabilities(self._engine, orders, CHOICES)[:, 0].tolist())
        judgements = []
        for _, problem, truncated in fitted:
            if problem is not None:
                judgements.append(Judgement(None, problem))
                continue
            both = (next(straight_and_swapped), 1.0 - next(straight_and_swapped))
            # One order alone would carry the position's preference into the label.
            told = not any(map(math.isnan, both))
            judgements.append(
                Judgement(sum(both) / 2, orders=both, truncated=truncated)
                if told
                else Judgement(None, UNTOLD, truncated=truncated)
            )
        return judgements

    def _talk(self, question: Question) -> Conversation:
        return (*self._shown.before(question, _ask), Message("user", _ask(question)))


def swapped(question: Question) -> Question:
    """The same question with the answers in the other order."""
    return replace(question, a=question.b, b=question.a)


def _ask(question: Question) -> str:
    return fill(
        "choice",
        dialogue=question.dialogue,
        a=question.a,
        b=question.b,
        question=question.principle.question,
    )
