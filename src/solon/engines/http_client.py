"""Sending requests to chat servers: side by side, over several endpoints, again where one is busy or fails.

A refusal ends the work at once, with the server's words. The key is read from the environment when a request
is sent, and stands in no setting and no message.
"""

import math
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeVar

import httpx2

from solon.errors import RunError, UsageError

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_SIDE_BY_SIDE = 8  # Requests in flight at the most, for each endpoint.

Request = TypeVar("Request")
Result = TypeVar("Result")
Pause = Callable[[float], Any]


class RefusedError(RunError):
    """A server says no; asking again would not help. `words` is what it says."""

    def __init__(self, message: str, status: int, words: str) -> None:
        self.status, self.words = status, words
        super().__init__(message)


class ChatClient:
    """The way to one model's endpoints. `timeout` is in seconds a request, `pause` waits between attempts."""

    def __init__(
        self, endpoints: Sequence[str], key_env: str, timeout: float = 120.0, pause: Pause | None = None
    ) -> None:
        """Nothing is asked yet. Raises UsageError: no endpoint, or one that is no http address."""
        wrong = [url for url in endpoints if not _is_address(url)]
        if wrong or not endpoints:
            what = f"`{wrong[0]}` is no http address" if wrong else "no endpoint is given"
            raise UsageError(f"judge.endpoints: {what}. Give addresses such as http://127.0.0.1:8000/v1.")
        self._endpoints = [url.rstrip("/") for url in endpoints]
        self._key_env = key_env
        self._stop = Event()
        self._pause: Pause = pause or self._stop.wait
        self._client = httpx2.Client(timeout=timeout, limits=httpx2.Limits(max_connections=256))

    def side_by_side(
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
            raise RunError(f"{self.endpoint(first)}: an answer has an unknown form ({what}).") from error

    def endpoint(self, number: int) -> str:
        return self._endpoints[number % len(self._endpoints)]

    def post(self, first: int, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's JSON; a busy or failing server is asked again, or the next one, a refusal is not."""
        failed = _Failed("")
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(_pause_seconds(attempt, failed.wait))
            if self._stop.is_set():
                raise RunError("stopped, since another request failed.")
            found = self._attempt(f"{self.endpoint(first + attempt)}/chat/completions", body)
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
        if response.status_code != 200:
            fix = f"Check judge.model, the key in {self._key_env}, and whether the text fits its context."
            raise RefusedError(f"refused, {said}. {fix}", response.status_code, text)
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
