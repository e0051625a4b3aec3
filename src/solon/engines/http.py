"""An engine on a model that runs on a server with OpenAI's chat interface (vLLM, SGLang, llama.cpp, hosted).

How requests are sent is `engines.http_client`'s work. What a server cannot give is said so and never made up:
options that are not among its top log-probabilities are `None`, and a server without log-probabilities is an
error that a judge can answer by reading the text instead.
"""

import math
from collections.abc import Sequence
from threading import Lock
from typing import Any

from solon.engines.base import Completion, Conversation, GenerateRequest, OptionRequest, Score, ScoreRequest
from solon.engines.http_client import ChatClient, Pause, RefusedError
from solon.engines.option_reading import TopLogprobs, read_options
from solon.errors import LogprobsUnavailableError, RunError
from solon.records import Finish

_TOP = 20  # The most that OpenAI's interface allows; vLLM's default limit as well.
_OPTION_TOKENS = 4  # "(A)" is two or three tokens in the vocabularies in use.
_REPLY_ONLY = "Reply with {options} and nothing else."


class HttpEngine:
    """Implements `Engine` of `solon.engines.base`; it has no hidden states.

    `context` is None: a server says no more than that a text is too long, which stops the run with its words.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        key_env: str = "SOLON_API_KEY",
        timeout: float = 120.0,
        pause: Pause | None = None,
    ) -> None:
        """Nothing is asked yet. `timeout` is in seconds a request, `pause` waits between attempts.

        Raises:
            UsageError: no endpoint, or one that is no http address.
        """
        self.tokens_generated = 0
        self.tokens_read = 0
        self.context: int | None = None
        self._client = ChatClient(endpoints, key_env, timeout, pause)
        self._model = model
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._model

    def length(self, conversation: Conversation) -> int:
        raise RunError(f"{self.name}: a server does not tell the length of a conversation beforehand.")

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """The next turns, in the order of the requests. `token_ids` stay empty: a server gives texts.

        Raises:
            RunError: a server refuses a request, or fails it at every attempt.
        """
        return self._client.side_by_side(self._generate, requests)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-probabilities of the continuations' tokens, by vLLM's `prompt_logprobs`.

        Raises:
            LogprobsUnavailableError: the server does not offer them.
            RunError: as in `generate`.
        """
        return self._client.side_by_side(self._score, requests)

    def option_logprobs(self, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
        """Log-probability in nats of each option, from the top log-probabilities of a greedy reply.

        Where a request starts the assistant's turn, that start is given as a turn of its own and the options
        are asked for in a further one: not every server can continue a turn.

        Raises:
            LogprobsUnavailableError: the server returns none at all.
            RunError: as in `generate`.
        """
        return self._client.side_by_side(self._options, requests)

    def _generate(self, request: GenerateRequest, first: int) -> Completion:
        sampling = request.sampling
        reply = self._ask(
            first,
            _turns(request.conversation),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed % 2**31,
        )
        choice = _choice(reply, self._client.endpoint(first))
        finish: Finish = "length" if choice.get("finish_reason") == "length" else "stop"
        text = str(choice["message"].get("content") or "")
        return Completion(text.strip(), (), finish, int(_usage(reply).get("prompt_tokens") or 0))

    def _options(self, request: OptionRequest, first: int) -> tuple[float, ...] | None:
        turns = _turns(request.conversation)
        if request.start.strip():
            asked = _REPLY_ONLY.format(options=" or ".join(request.options))
            turns += [_turn("assistant", request.start.strip()), _turn("user", asked)]
        asked_for = {"max_tokens": _OPTION_TOKENS, "temperature": 0, "logprobs": True, "top_logprobs": _TOP}
        try:
            reply = self._ask(first, turns, **asked_for)
        except RefusedError as error:
            if error.status == 400 and "logprobs" in error.words:
                raise self._no_logprobs("refuses to give log-probabilities") from error
            raise
        told = _choice(reply, self._client.endpoint(first)).get("logprobs") or {}
        if told.get("content") is None:
            raise self._no_logprobs("returns no log-probabilities")
        return read_options(_top_logprobs(told["content"]), request.options)

    def _no_logprobs(self, what: str) -> LogprobsUnavailableError:
        return LogprobsUnavailableError(
            f"{self._client.endpoint(0)} {what} of {self._model}. Use a server that does (vLLM, SGLang, "
            "llama.cpp), or the judge chain_of_thought, which reads the verdict from the text."
        )

    def _score(self, request: ScoreRequest, first: int) -> Score:
        said = [*_turns(request.conversation), _turn("assistant", request.continuation)]
        whole = self._prompt_logprobs(first, said, add_generation_prompt=False, continue_final_message=True)
        before = self._prompt_logprobs(first, said[:-1], add_generation_prompt=True)
        if [token for token, _ in whole[: len(before)]] != [token for token, _ in before]:
            raise RunError(
                f"{self._client.endpoint(first)}: the server's chat template writes a begun answer otherwise "
                "than a new one, so the answer's tokens cannot be told apart. Use a local model, or "
                "another judge."
            )
        answer = [logp for _, logp in whole[len(before) :]]
        if not answer:
            raise RunError("an empty continuation cannot be scored. Leave empty texts out.")
        return Score(tuple(answer))

    def _prompt_logprobs(
        self, first: int, turns: list[dict[str, str]], **how: bool
    ) -> list[tuple[str, float]]:
        """Id and log-probability of every token of the prompt; the first has none and stands as ("", 0)."""
        reply = self._ask(first, turns, max_tokens=1, temperature=0, prompt_logprobs=0, **how)
        rows = reply.get("prompt_logprobs")
        if not isinstance(rows, list) or not rows:
            raise LogprobsUnavailableError(
                f"{self._client.endpoint(first)} does not return the log-probabilities of given texts "
                "(`prompt_logprobs`), which the judge likelihood stands on. Use vLLM, a local model, or "
                "another judge."
            )
        return [("", 0.0), *(_asked_token(row) for row in rows[1:])]

    def _ask(self, first: int, turns: list[dict[str, str]], **settings: Any) -> dict[str, Any]:
        """One chat completion; its usage is counted."""
        reply = self._client.post(first, {"model": self._model, "messages": turns, **settings})
        usage = _usage(reply)
        with self._lock:
            self.tokens_read += int(usage.get("prompt_tokens") or 0)
            self.tokens_generated += int(usage.get("completion_tokens") or 0)
        return reply


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _turns(conversation: Conversation) -> list[dict[str, str]]:
    return [_turn(m.role, m.content) for m in conversation]


def _choice(reply: dict[str, Any], endpoint: str) -> dict[str, Any]:
    choices = reply.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        choice: dict[str, Any] = choices[0]
        if isinstance(choice.get("message"), dict):
            return choice
    raise RunError(f"{endpoint}: the answer holds no message. Is this a server with OpenAI's chat interface?")


def _usage(reply: dict[str, Any]) -> dict[str, Any]:
    usage = reply.get("usage")
    return usage if isinstance(usage, dict) else {}


def _top_logprobs(content: list[dict[str, Any]]) -> list[TopLogprobs]:
    return [
        TopLogprobs(
            str(place["token"]),
            tuple((str(one["token"]), float(one["logprob"])) for one in place.get("top_logprobs") or ()),
        )
        for place in content
    ]


def _asked_token(row: dict[str, Any]) -> tuple[str, float]:
    """The id and log-probability of the token that stands there: with `prompt_logprobs: 0` the only one."""
    [(token, told)] = row.items()
    logp = float(told["logprob"])
    if not math.isfinite(logp):
        raise ValueError("a log-probability is no number")
    return token, logp
