"""The interface of a judge.

A judge answers with a probability or says why it cannot ("unscored"); it never makes a number up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from solon.constitution import Principle
from solon.engines.base import Conversation, Engine, Message
from solon.errors import RunError
from solon.records import PromptKind

_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "Setting"}


@dataclass(frozen=True)
class Question:
    """Which of the answers a and b to `prompt` does `principle` prefer? `history` came before the prompt.

    `kind` tells which principles are asked on such a prompt; None: all of them.
    """

    principle: Principle
    prompt: str
    a: str
    b: str
    history: Conversation = ()
    kind: PromptKind | None = None

    @property
    def conversation(self) -> Conversation:
        """The turns up to and with the prompt."""
        return (*self.history, Message("user", self.prompt))

    @property
    def dialogue(self) -> str:
        """The conversation as one text; a single question stands without a speaker's name."""
        if not self.history:
            return self.prompt
        return "\n\n".join(f"{_SPEAKERS[turn.role]}: {turn.content}" for turn in self.conversation)


@dataclass(frozen=True)
class Judgement:
    """The probability that a is preferred; None where the judge could not tell, and then why.

    `orders` has P(a) as read with a in the first place and with a in the second, where a judge asks in
    both. `disagreement` is the standard deviation of the members' probabilities, where several were asked.
    `truncated` tells that the conversation was cut from the left to fit into the model's context. `p_raw` is
    the probability before calibration.
    """

    p_a: float | None
    unscored: str | None = None
    orders: tuple[float, float] | None = None
    disagreement: float | None = None
    truncated: bool = False
    p_raw: float | None = None

    def __post_init__(self) -> None:
        if self.p_a is not None and not 0.0 <= self.p_a <= 1.0:
            raise RunError(
                f"a judge's probability is {self.p_a}: its model computes values that are no numbers."
            )

    @property
    def flipped(self) -> bool | None:
        """Whether the judge chose the same position in both orders, that is, the other answer."""
        if self.orders is None:
            return None
        first, second = self.orders
        return (first - 0.5) * (second - 0.5) < 0


class Judge(Protocol):
    """Compares answers. `name` stands in the rows as their origin."""

    @property
    def name(self) -> str: ...

    def compare(self, questions: Sequence[Question]) -> list[Judgement]: ...


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))


def logit(p: float) -> float:
    """log(p / (1 - p)); probabilities closer to 0 or 1 than 1e-9 are held there."""
    held = min(max(p, 1e-9), 1.0 - 1e-9)
    return math.log(held / (1.0 - held))


def unanswerable(question: Question) -> str | None:
    """Why no judge can answer: an empty text on one side. None if both sides can be read."""
    if not question.a.strip() or not question.b.strip():
        return "an answer is empty"
    return None


def settled(a: str, b: str) -> float | None:
    """P(a is better) where no judge is needed, else None: equal texts are a tie, nothing is worse than any.

    A judge cannot read an empty text. Left out, the answers of a model that falls silent would be missing
    where it loses the most.
    """
    said, before = bool(a.strip()), bool(b.strip())
    if a == b or not (said or before):
        return 0.5
    return None if said and before else float(said)


Compare = Callable[[Sequence[Question]], Sequence[Judgement]]


def decisions(questions: Sequence[Question], compare: Compare) -> list[Judgement]:
    """Judgements of all questions; a judge's `compare` is given those that are not settled, if any."""
    known = [settled(question.a, question.b) for question in questions]
    asked = [question for question, p in zip(questions, known, strict=True) if p is None]
    told = iter(compare(asked) if asked else [])
    return [next(told) if p is None else Judgement(p) for p in known]


def preferences(questions: Sequence[Question], compare: Compare) -> list[float | None]:
    """P(a is better) as `decisions` tells it; None where the judge could not tell."""
    return [decision.p_a for decision in decisions(questions, compare)]


def judged(
    questions: Sequence[Question], work: Callable[[Sequence[Question]], Sequence[Judgement]]
) -> list[Judgement]:
    """Judgements of all questions: `work` is given those that can be answered, each different one once."""
    asked = [q for q in dict.fromkeys(questions) if unanswerable(q) is None]
    known = dict(zip(asked, work(asked), strict=True)) if asked else {}
    return [known.get(q) or Judgement(None, unanswerable(q)) for q in questions]


Render = Callable[[Question], Conversation]


def fit_to_context(
    question: Question, engine: Engine, render: Render, room: int = 0, beside: Sequence[str] = ()
) -> tuple[Question, str | None, bool]:
    """The question, cut from the left until `render` of it fits into the context.

    `room` more tokens and the longest of the texts `beside` must fit behind it. First the oldest turns go,
    then the prompt's first words. Returns the question, why it cannot be asked (None if it can), and whether
    anything was cut. An engine that does not know its context is given the whole question.
    """
    if engine.context is None:
        return question, None, False
    # Each text is counted as a message, header included: a little too much rather than too little.
    longest = max((engine.length((Message("user", text),)) for text in beside), default=0)
    fits = engine.context - room - longest
    cut = question
    while engine.length(render(cut)) > fits:
        if cut.history:
            cut = replace(cut, history=_later(cut.history))
        elif len(cut.prompt) > 1:
            cut = replace(cut, prompt=_second_half(cut.prompt))
        else:
            return question, "the answers alone do not fit into the judge's context", False
    return cut, None, cut is not question


def _second_half(text: str) -> str:
    """The last half of the words; of the characters where there are no spaces between words."""
    words = text.split()
    return " ".join(words[-(len(words) // 2) :]) if len(words) > 1 else text[-(len(text) // 2) :]


def _later(history: Conversation) -> Conversation:
    """The history from its next turn of the user on: templates want conversations to begin with one."""
    return next((history[i:] for i in range(1, len(history)) if history[i].role == "user"), ())
