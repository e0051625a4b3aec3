"""Questions and answers as token ids, the same in fine-tuning, reward model, PPO and evaluation.

An answer that ended carries the end-of-turn token; one that was cut off by the token limit does not.
Lengths are explicit everywhere: in many chat models the pad token is the end token, and a mask made
from `ids != pad` would hide real ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from solon.engines.base import Message
from solon.records import Finish


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt (with the header of the assistant's turn) and of the answer to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.answer


def turn_ids(tokenizer: Any, conversation: Sequence[Message]) -> tuple[int, ...]:
    """The token ids of a conversation up to the header of the assistant's turn.

    Models that can think before they answer are asked not to (`enable_thinking`): within the tokens that
    an answer is given, their thoughts would not end. Errors are the template's.
    """
    turns = [{"role": message.role, "content": message.content} for message in conversation]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, **template_settings(tokenizer)
    )
    return tuple(ids)


def template_settings(tokenizer: Any) -> dict[str, bool]:
    """What a chat template is told beside the turns, if it reads that: not all tokenizers take more."""
    return {"enable_thinking": False} if "enable_thinking" in str(tokenizer.chat_template) else {}


class Encoder:
    """Encodes with a tokenizer's own chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.end = int(tokenizer.eos_token_id)

    def prompt(self, text: str) -> tuple[int, ...]:
        return turn_ids(self._tokenizer, [Message("user", text)])

    def encode(self, prompt: str, answer: str, finish: Finish, max_tokens: int) -> Encoded:
        """Cut from the right to `max_tokens` in all; a cut answer loses its end token with its tail."""
        before = self.prompt(prompt)
        ids = tuple(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        ids += (self.end,) if finish == "stop" else ()
        return Encoded(before, ids[: max(0, max_tokens - len(before))])

    def decode(self, ids: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
