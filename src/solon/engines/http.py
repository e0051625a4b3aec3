"""An engine on a model that runs on a server with OpenAI's chat interface (vLLM, SGLang, llama.cpp, hosted).

Requests go out side by side, spread over the endpoints, and are repeated with growing pauses where a server
is busy, fails or does not answer. What a server cannot give is said so and never made up: options that are
not among its top log-probabilities are `None`, and a server without log-probabilities is an error that a
judge can answer by reading the text instead.

The key is read from the environment when a request is sent; it stands in no setting, row or message.
"""

import math
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, TypeVar

import httpx2

from solon.engines.base import Completion, Conversation, GenerateRequest, OptionRequest, Score, ScoreRequest
from solon.engines.option_reading import TopLogprobs, read_options
from solon.errors import LogprobsUnavailableError, RunError, UsageError
from solon.records import Finish

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_SIDE_BY_SIDE = 8  # Requests in flight at the most, for each endpoint.
_TOP = 20  # The most that OpenAI's interface allows; vLLM's default limit as well.
_OPTION_TOKENS = 4  # "(A)" is two or three tokens in the vocabularies in use.
_REPLY_ONLY = "Reply with {options} and nothing else."

Request = TypeVar("Request")
Result = TypeVar("Result")
Pause = Callable[[float], Any]


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
        wrong = [url for url in endpoints if not _is_address(url)]
        if wrong or not endpoints:
            what = f"`{wrong[0]}` is no http address" if wrong else "no endpoint is given"
            raise UsageError(f"judge.endpoints: {what}. Give addresses such as http://127.0.0.1:8000/v1.")
        self.tokens_generated = 0
        self.tokens_read = 0
        self.context: int | None = None
        self._endpoints = [url.rstrip("/") for url in endpoints]
        self._model = model
        self._key_env = key_env
        self._stop = Event()
        self._pause: Pause = pause or self._stop.wait
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
        self, work: Callable[[Request, int], Result], requests: Sequence[Request]
    ) -> list[Result]:
        """Results in the order of the requests; an error, or Ctrl-C, stops all that is not finished.

        `work` is given a request and the number of the endpoint to begin with.
        """
        self._stop.clear()
        pool = ThreadPoolExecutor(_SIDE_BY_SIDE * len(self._endpoints))
        try:
            futures = [pool.submit(self._read, work, request, i) for i, request in enumerate(requests)]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [error for future in futures if future in done and (error := future.exception())]
            if failed:
                raise failed[0]
            return [future.result() for future in futures]
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _read(self, work: Callable[[Request, int], Result], request: Request, first: int) -> Result:
        """The work, its surprises about a reply's form turned into an error that names the server."""
        try:
            return work(request, first)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            what = f"{type(error).__name__}: {error}"
            raise RunError(f"{self._endpoint(first)}: an answer has an unknown form ({what}).") from error

    def _endpoint(self, number: int) -> str:
        return self._endpoints[number % len(self._endpoints)]

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
        choice = _choice(reply, self._endpoint(first))
        finish: Finish = "length" if choice.get("finish_reason") == "length" else "stop"
        text = str(choice["message"].get("content") or "")
        return Completion(text.strip(), (), finish, int(_usage(reply).get("prompt_tokens") or 0))

    def _options(self, request: OptionRequest, first: int) -> tuple[float, ...] | None:
        turns = _turns(request.conversation)
        if request.start.strip():
            asked = _REPLY_ONLY.format(options=" or ".join(request.options))
            turns += [_turn("assistant", request.start.strip()), _turn("user", asked)]
        asked_for = {"max_tokens": _OPTION_TOKENS, "temperature": 0, "logprobs": True, "top_logprobs": _TOP}
        reply = self._ask(first, turns, **asked_for)
        told = _choice(reply, self._endpoint(first)).get("logprobs") or {}
        if told.get("content") is None:
            raise self._no_logprobs("returns no log-probabilities")
        return read_options(_top_logprobs(told["content"]), request.options)

    def _no_logprobs(self, what: str) -> LogprobsUnavailableError:
        return LogprobsUnavailableError(
            f"{self._endpoints[0]} {what} of {self._model}. Use a server that does (vLLM, SGLang, "
            "llama.cpp), or the judge chain_of_thought, which reads the verdict from the text."
        )

    def _score(self, request: ScoreRequest, first: int) -> Score:
        said = [*_turns(request.conversation), _turn("assistant", request.continuation)]
        whole = self._prompt_logprobs(first, said, add_generation_prompt=False, continue_final_message=True)
        before = self._prompt_logprobs(first, said[:-1], add_generation_prompt=True)
        if [token for token, _ in whole[: len(before)]] != [token for token, _ in before]:
            raise RunError(
                f"{self._endpoint(first)}: the server's chat template writes a begun answer in another way "
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
                f"{self._endpoint(first)} does not return the log-probabilities of given texts "
                "(`prompt_logprobs`), which the judge likelihood stands on. Use vLLM, a local model, or "
                "another judge."
            )
        return [("", 0.0), *(_asked_token(row) for row in rows[1:])]

    def _ask(self, first: int, turns: list[dict[str, str]], **settings: Any) -> dict[str, Any]:
        """One chat completion; its usage is counted."""
        reply = self._post(first, {"model": self._model, "messages": turns, **settings})
        usage = _usage(reply)
        with self._lock:
            self.tokens_read += int(usage.get("prompt_tokens") or 0)
            self.tokens_generated += int(usage.get("completion_tokens") or 0)
        return reply

    def _post(self, first: int, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's JSON; a busy or failing server is asked again, or the next one, a refusal is not."""
        failed = _Failed("")
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(_pause_seconds(attempt, failed.wait))
            if self._stop.is_set():
                raise RunError("stopped, since another request failed.")
            found = self._attempt(f"{self._endpoint(first + attempt)}/chat/completions", body)
            if not isinstance(found, _Failed):
                return found
            failed = found
        raise RunError(
            f"no usable answer in {_ATTEMPTS} attempts: {failed.why}. Check that the server is up."
        )

    def _attempt(self, url: str, body: dict[str, Any]) -> "dict[str, Any] | _Failed":
        key = self._key()
        try:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            response = self._client.post(url, json=body, headers=headers)
        except httpx2.RequestError as error:
            return _Failed(f"{url}: {type(error).__name__} {error}".strip())
        # A server may echo what it was sent: the key must not come back in a message.
        text = response.text.replace(key, "…") if key else response.text
        said = f"{url}: status {response.status_code}: {' '.join(text.split())[:200]}"
        if response.status_code == 429 or response.status_code >= 500:
            return _Failed(said, _retry_after(response))
        if response.status_code == 400 and "logprobs" in text:
            raise self._no_logprobs("refuses to give log-probabilities")
        if response.status_code != 200:
            fix = f"Check judge.model, the key in {self._key_env}, and whether the text fits its context."
            raise RunError(f"refused, {said}. {fix}")
        try:
            found = response.json()
        except ValueError:
            return _Failed(f"{url}: the answer is no JSON")
        return found if isinstance(found, dict) else _Failed(f"{url}: the answer is no JSON object")

    def _key(self) -> str:
        key = os.environ.get(self._key_env, "").strip()
        if not (key.isascii() and (key.isprintable() or not key)):
            raise UsageError(f"the key in {self._key_env} holds characters that no key has. Set it anew.")
        return key


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


def _asked_token(row: dict[str, Any]) -> tuple[str, float]:
    """The id and log-probability of the token that stands there: with `prompt_logprobs: 0` the only one."""
    [(token, told)] = row.items()
    logp = float(told["logprob"])
    if not math.isfinite(logp):
        raise ValueError("a log-probability is no number")
    return token, logp


def _is_address(url: str) -> bool:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait; its other form, a date, is not worth reading here."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _pause_seconds(attempt: int, wanted: float | None) -> float:
    """Doubling pauses, shortened at random so that many clients do not come back together."""
    doubled = _FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1)
    seconds = doubled * (0.5 + random.random() / 2) if wanted is None else wanted
    return min(seconds, _LONGEST_PAUSE_SECONDS)
