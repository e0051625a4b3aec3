"""An engine on a model that runs on a server with OpenAI's chat interface (vLLM, SGLang, llama.cpp, hosted).

Requests go out side by side, spread over the endpoints, and are repeated with growing pauses where a server
is busy, fails or does not answer. What a server cannot give is said so and never made up: options that are
not among its top log-probabilities are `None`, and a server without log-probabilities is an error that a
judge can answer by reading the text instead.

The key is read from the environment when a request is sent; it stands in no setting, row or message.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import httpx2

from solon.engines.base import Completion, Conversation, GenerateRequest, OptionRequest, Score, ScoreRequest
from solon.engines.option_reading import TopLogprobs, read_options
from solon.errors import LogprobsUnavailableError, RunError, UsageError
from solon.records import Finish

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_SIDE_BY_SIDE = 8  # Requests an endpoint has in flight at the most.
_TOP = 20  # The most that OpenAI's interface allows; vLLM's default limit as well.
_OPTION_TOKENS = 4  # "(A)" is two or three tokens in the vocabularies in use.
_REPLY_ONLY = "Reply with {options} and nothing else."

Request = TypeVar("Request")
Result = TypeVar("Result")
Pause = Callable[[float], None]


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
        pause: Pause = time.sleep,
    ) -> None:
        """Nothing is asked yet. `timeout` is in seconds a request, `pause` waits between attempts.

        Raises:
            UsageError: no endpoint, or one that is no http address.
        """
        wrong = [url for url in endpoints if not url.startswith(("http://", "https://"))]
        if wrong or not endpoints:
            what = f"`{wrong[0]}` is no http address" if wrong else "no endpoint is given"
            raise UsageError(f"judge.endpoints: {what}. Give addresses such as http://127.0.0.1:8000/v1.")
        self.tokens_generated = 0
        self.tokens_read = 0
        self.context: int | None = None
        self._endpoints = [url.rstrip("/") for url in endpoints]
        self._model = model
        self._key_env = key_env
        self._pause = pause
        self._lock = Lock()
        self._client = httpx2.Client(timeout=timeout, limits=httpx2.Limits(max_connections=256))

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
        return self._side_by_side(self._generate, requests)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-probabilities of the continuations' tokens, by vLLM's `prompt_logprobs`.

        Raises:
            LogprobsUnavailableError: the server does not offer them.
            RunError: as in `generate`.
        """
        return self._side_by_side(self._score, requests)

    def option_logprobs(self, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
        """Log-probability in nats of each option, from the top log-probabilities of a greedy reply.

        Where a request starts the assistant's turn, that start is given as a turn of its own and the options
        are asked for in a further one: not every server can continue a turn.

        Raises:
            LogprobsUnavailableError: the server returns none at all.
            RunError: as in `generate`.
        """
        return self._side_by_side(self._options, requests)

    def _side_by_side(
        self, work: Callable[[Request, str], Result], requests: Sequence[Request]
    ) -> list[Result]:
        """Results in the order of the requests; the first error stops those that have not begun."""
        pool = ThreadPoolExecutor(_SIDE_BY_SIDE * len(self._endpoints))
        try:
            ends = [self._endpoints[i % len(self._endpoints)] for i in range(len(requests))]
            return list(pool.map(work, requests, ends))
        finally:
            pool.shutdown(cancel_futures=True)

    def _generate(self, request: GenerateRequest, endpoint: str) -> Completion:
        sampling = request.sampling
        reply = self._ask(
            endpoint,
            _turns(request.conversation),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed % 2**31,
        )
        choice = _choice(reply, endpoint)
        finish: Finish = "length" if choice.get("finish_reason") == "length" else "stop"
        text = choice["message"].get("content") or ""
        return Completion(text.strip(), (), finish, int(_usage(reply).get("prompt_tokens", 0)))

    def _options(self, request: OptionRequest, endpoint: str) -> tuple[float, ...] | None:
        turns = _turns(request.conversation)
        if request.start.strip():
            asked = _REPLY_ONLY.format(options=" or ".join(request.options))
            turns += [_turn("assistant", request.start.strip()), _turn("user", asked)]
        asked_for = {"max_tokens": _OPTION_TOKENS, "temperature": 0, "logprobs": True, "top_logprobs": _TOP}
        reply = self._ask(endpoint, turns, **asked_for)
        found = (_choice(reply, endpoint).get("logprobs") or {}).get("content")
        if not found:
            raise LogprobsUnavailableError(
                f"{endpoint} returns no log-probabilities of {self._model}. Use a server that does (vLLM, "
                "SGLang, llama.cpp), or the judge chain_of_thought, which reads the verdict from the text."
            )
        return read_options(_top_logprobs(found), request.options)

    def _score(self, request: ScoreRequest, endpoint: str) -> Score:
        said = [*_turns(request.conversation), _turn("assistant", request.continuation)]
        whole = self._prompt_logprobs(
            endpoint, said, add_generation_prompt=False, continue_final_message=True
        )
        before = self._prompt_logprobs(endpoint, said[:-1], add_generation_prompt=True)
        answer = whole[len(before) :]
        if not answer:
            raise RunError(f"{endpoint}: an empty continuation cannot be scored. Leave empty texts out.")
        return Score(tuple(answer))

    def _prompt_logprobs(self, endpoint: str, turns: list[dict[str, str]], **how: bool) -> list[float]:
        """Of every token of the prompt; the first has none and stands as 0."""
        reply = self._ask(endpoint, turns, max_tokens=1, temperature=0, prompt_logprobs=0, **how)
        rows = reply.get("prompt_logprobs")
        if not isinstance(rows, list):
            raise LogprobsUnavailableError(
                f"{endpoint} does not return the log-probabilities of given texts (`prompt_logprobs`), which "
                "the judge likelihood stands on. Use vLLM, a local model, or another judge."
            )
        return [0.0 if row is None else _asked_token(row, endpoint) for row in rows]

    def _ask(self, endpoint: str, turns: list[dict[str, str]], **settings: Any) -> dict[str, Any]:
        """One chat completion; its usage is counted."""
        reply = self._post(
            f"{endpoint}/chat/completions", {"model": self._model, "messages": turns, **settings}
        )
        usage = _usage(reply)
        with self._lock:
            self.tokens_read += int(usage.get("prompt_tokens", 0))
            self.tokens_generated += int(usage.get("completion_tokens", 0))
        return reply

    def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's JSON; a busy or failing server is asked again, a refusal is not."""
        failed = _Failed("")
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(_pause_seconds(attempt, failed.wait))
            found = self._attempt(url, body)
            if not isinstance(found, _Failed):
                return found
            failed = found
        raise RunError(
            f"{url}: no usable answer in {_ATTEMPTS} attempts ({failed.why}). Check that the server is up."
        )

    def _attempt(self, url: str, body: dict[str, Any]) -> "dict[str, Any] | _Failed":
        try:
            response = self._client.post(url, json=body, headers=self._headers())
        except httpx2.RequestError as error:
            return _Failed(f"{type(error).__name__} {error}".strip())
        said = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
        if response.status_code == 429 or response.status_code >= 500:
            return _Failed(said, _retry_after(response))
        if response.status_code != 200:
            fix = f"Check judge.model, the key in {self._key_env}, and whether the text fits its context."
            raise RunError(f"{url}: refused, {said}. {fix}")
        try:
            found = response.json()
        except ValueError:
            return _Failed("the answer is no JSON")
        return found if isinstance(found, dict) else _Failed("the answer is no JSON object")

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self._key_env)
        return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class _Failed:
    """An attempt that is worth another one: why it failed, and how many seconds the server asks to wait."""

    why: str
    wait: float | None = None


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


def _asked_token(row: dict[str, Any], endpoint: str) -> float:
    """The log-probability of the token that stands there: with `prompt_logprobs: 0` the only one."""
    if not row:
        raise RunError(f"{endpoint}: a token of a given text has no log-probability.")
    return float(next(iter(row.values()))["logprob"])


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait; its other form, a date, is not worth reading here."""
    try:
        return float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None


def _pause_seconds(attempt: int, wanted: float | None) -> float:
    """Doubling pauses, shortened at random so that many clients do not come back together."""
    doubled = _FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1)
    seconds = doubled * (0.5 + random.random() / 2) if wanted is None else wanted
    return min(seconds, _LONGEST_PAUSE_SECONDS)
