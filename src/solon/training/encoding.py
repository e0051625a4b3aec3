"""Questions and answers as token ids, the same in fine-tuning, reward model, PPO and evaluation.

An answer that ended carries the end-of-turn token; one that was cut off by the token limit does not.
Lengths are explicit everywhere: in many chat models the pad token is the end token, and a mask made
from `ids != pad` would hide real ends.
"""

from dataclasses import dataclass
from typing import Any

from solon.records import Finish


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt (with the header of the assistant's turn) and of the answer to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.answer


class Encoder:
    """Encodes with a tokenizer's own chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.end = int(tokenizer.eos_token_id)

    def prompt(self, text: str) -> tuple[int, ...]:
        turns = [{"role": "user", "content": text}]
        ids = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        return tuple(ids)

    def encode(self, prompt: str, answer: str, finish: Finish, max_tokens: int) -> Encoded:
        """Cut from the right to `max_tokens` in all; a cut answer loses its end token with its tail."""
        before = self.prompt(prompt)
        ids = tuple(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        ids += (self.end,) if finish == "stop" else ()
        return Encoded(before, ids[: max(0, max_tokens - len(before))])

    def decode(self, ids: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
