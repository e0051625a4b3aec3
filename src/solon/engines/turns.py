"""Conversations as token ids for models whose tokenizer is at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from solon.engines.base import Conversation, OptionRequest, ScoreRequest
from solon.errors import RunError, UsageError
from solon.models import NEXT_QUESTION, TRANSCRIPT
from solon.records import Finish
from solon.text import HALF
from solon.training.encoding import Encoded, turn_ids


@dataclass(frozen=True)
class Answer:
    """A generated turn: its text, how many of the new tokens it took with what ended it, and why it ended."""

    text: str
    tokens: int
    finish: Finish


@dataclass(frozen=True)
class Turns:
    """Writes conversations by a tokenizer's chat template, and refuses what does not fit into the context.

    `name` is the model's in messages, `context` its length in tokens, None where it has no limit.
    """

    tokenizer: Any
    name: str
    context: int | None

    def ids(self, conversation: Conversation) -> tuple[int, ...]:
        """Token ids up to the assistant's header. Raises UsageError: the template refuses the turns."""
        try:
            return turn_ids(self.tokenizer, conversation)
        except TemplateError as error:
            raise UsageError(
                f"{self.name}: its chat template refuses the conversation “{_first_words(conversation)}” "
                f"({error}). Use a model whose template takes these roles."
            ) from error

    def prompt(self, conversation: Conversation, room: int) -> tuple[int, ...]:
        """As `ids`; `room` tokens must fit behind them, else UsageError."""
        ids = self.ids(conversation)
        if self.context is not None and len(ids) + room > self.context:
            raise UsageError(
                f"“{_first_words(conversation)}” has {len(ids)} tokens; with {room} more it does not fit "
                f"into the context of {self.name}, {self.context} tokens. Shorten it or lower max_tokens."
            )
        return ids

    def row(self, request: ScoreRequest) -> Encoded:
        """A text that is to be scored.

        Raises:
            RunError: the continuation has no token.
            UsageError: it does not fit into the context.
        """
        answer = tuple(self.tokenizer(request.continuation, add_special_tokens=False)["input_ids"])
        if not answer:
            raise RunError(
                f"an empty continuation of “{_first_words(request.conversation)}” cannot be scored. "
                "Leave empty texts out."
            )
        return Encoded(self.prompt(request.conversation, len(answer)), answer)

    def text(self, ids: Sequence[int]) -> str:
        return self._decoded(ids).strip()

    def answer(self, ids: Sequence[int], ended: bool) -> Answer:
        """What new tokens say; `ended` if the last is an end token.

        In a plain transcript an answer ends where the model writes the next question, too.
        """
        text = self._decoded(ids)
        if self.begins_question(ids):
            count = next(n for n in range(1, len(ids) + 1) if NEXT_QUESTION in self._decoded(ids[:n]))
            return Answer(text[: text.index(NEXT_QUESTION)].strip(), count, "stop")
        if ended:
            return Answer(text.strip(), len(ids), "stop")
        return Answer(text.rstrip(HALF).strip(), len(ids), "length")

    def begins_question(self, ids: Sequence[int]) -> bool:
        """Whether the next question of a plain transcript begins in these new tokens."""
        return self.plain and NEXT_QUESTION in self._decoded(ids)

    @property
    def plain(self) -> bool:
        """Whether conversations are written as a plain transcript, for want of a chat template."""
        return bool(self.tokenizer.chat_template == TRANSCRIPT)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def check_options(self, requests: Sequence[OptionRequest]) -> None:
        """Raises RunError: the tokenizer writes two options of a request with the same tokens."""
        for options in dict.fromkeys(request.options for request in requests):
            written = {tuple(self.tokenizer(o, add_special_tokens=False)["input_ids"]) for o in options}
            if len(written) < len(options):
                raise RunError(
                    f"{self.name} cannot tell the options {' '.join(options)} apart: its tokenizer writes "
                    "them with the same tokens. Use a judge without options: linear_probe or likelihood."
                )


def _first_words(conversation: Conversation) -> str:
    return " ".join(conversation[-1].content.split()[:8]) if conversation else ""
