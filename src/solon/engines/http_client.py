"""Sending requests to model servers: side by side, over several endpoints, again where one is busy or fails.

A refusal ends the work at once, with the server's words. The key is read from the environment when a request
is sent, and stands in no setting, no file and no message.
"""

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, TypeVar

import httpx2

from solon.engines.http_budget import Amount, Budget
from solon.engines.http_cache import ReplyCache
from solon.engines.http_gate import Gate, StoppedError, Ticket
from solon.errors import RunError, UsageError
from solon.roles import ServerSettings

_ATTEMPTS = 8  # That may fail; being told to wait is no failure.
_PATIENCE_SECONDS = 1800.0  # A request is told to wait for so long at the most.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_GREETING_SECONDS = 10.0

Request = TypeVar("Request")
Result = TypeVar("Result")
Read = Callable[[dict[str, Any]], Result]
Pause = Callable[[float], Any]


class RefusedError(RunError):
    """A server says no; asking again would not help. `words` is what it says."""

    def __init__(self, message: str, status: int, words: str) -> None:
        self.status, self.words = status, words
        super().__init__(message)


class UnusableError(Exception):
    """A reply lacks what was asked for. `final` is what to raise if it does so at every attempt."""

    def __init__(self, why: str, final: RunError | None = None) -> None:
        self.final = final
        super().__init__(why)


@dataclass(frozen=True)
class _Asked:
    """A request: where to, what, how the reply is read, and the most that it can use up."""

    path: str
    body: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]
    most: Amount


@dataclass(frozen=True)
class _Failed:
    """An attempt that is worth another one. `lost`: the server may have worked and counted."""

    why: str
    final: RunError | None = None
    lost: bool = True


@dataclass(frozen=True)
class _Busy:
    """The server asks to wait; it says how many seconds, or not."""

    why: str
    wait: float | None


@dataclass
class Usage:
    """Tokens that servers counted since the start."""

    read: int = 0
    written: int = 0


class Client:
    """The way to one role's servers."""

    def __init__(
        self,
        role: str,
        endpoints: Sequence[str],
        key_env: str,
        settings: ServerSettings,
        budget: Budget,
        cache: ReplyCache | None = None,
        pause: Pause | None = None,
    ) -> None:
        """Nothing is asked yet. `pause` waits between attempts.

        Raises:
            UsageError: no endpoint, or one that is no http address.
        """
        wrong = [url for url in endpoints if not _is_address(url)]
        if wrong or not endpoints:
            what = f"`{wrong[0]}` is no http address" if wrong else "no endpoint is given"
            raise UsageError(f"{role}.endpoints: {what}. Give addresses such as http://127.0.0.1:8000/v1.")
        self.role = role
        self.usage = Usage()
        self._endpoints = [url.rstrip("/") for url in endpoints]
        self._key_env = key_env
        self._budget = budget
        self._cache = cache
        self._at_once = settings.concurrency * len(endpoints)
        self._gate = Gate(self._endpoints, settings.concurrency)
        self._stop = Event()
        self._pause: Pause = pause or self._stop.wait
        self._lock = Lock()
        self._greeted = False
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=self._at_once)
        self._client = httpx2.Client(timeout=settings.timeout, limits=limits)

    def side_by_side(
        self, work: Callable[[Request], Result], requests: Sequence[Request]
    ) -> Iterator[tuple[int, Result]]:
        """The place and the result of each request, as they finish.

        An error, or leaving the loop, stops all that is not finished. Only so many requests are taken up at
        once as are in flight.
        """
        self._stop.clear()
        self._gate.open()
        self._budget.open()
        pool = ThreadPoolExecutor(min(self._at_once, max(1, len(requests))))
        waiting = iter(enumerate(requests))
        running: dict[Future[Result], int] = {}
        try:
            while True:
                for index, request in waiting:
                    running[pool.submit(work, request)] = index
                    if len(running) > self._at_once:
                        break
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: running[f]):
                    yield running.pop(future), future.result()
        finally:
            self._stop.set()
            self._gate.stop()
            self._budget.stop()
            pool.shutdown(cancel_futures=True)

    def post(self, path: str, body: dict[str, Any], read: Read[Result], new_tokens: int) -> Result:
        """What `read` finds in the answer's JSON, from the cache or a server.

        A busy or failing server is asked again, or another one; a refusal is not. `read` raises UnusableError
        for a reply that lacks what was asked for, which may be an accident of this one. `new_tokens` is how
        many the reply may have.

        Raises:
            RunError: refused, failed at every attempt, or beyond the budget.
        """
        found: Result
        if self._cache and (known := self._cache.get(path, body)) is not None:
            found = _read(read, known)
            return found
        self._greet()
        turns = body.get("messages") or [None]
        prompt_bytes = len(json.dumps(body, ensure_ascii=False).encode())
        asked = _Asked(path, body, read, self._budget.most(prompt_bytes, len(turns), new_tokens))
        failures, waited = 0, 0.0
        while True:
            outcome = self._attempt(asked)
            if isinstance(outcome, _Busy):
                # Being told to wait costs no attempt: the gate holds the endpoint back for that long.
                waited += max(outcome.wait or 0.0, _FIRST_PAUSE_SECONDS)
                if waited > _PATIENCE_SECONDS:
                    raise RunError(f"told to wait for more than {_PATIENCE_SECONDS:.0f} s: {outcome.why}.")
            elif isinstance(outcome, _Failed):
                failures += 1
                if failures == _ATTEMPTS:
                    raise outcome.final or RunError(
                        f"no usable answer in {_ATTEMPTS} attempts: {outcome.why}. Check that the server "
                        "is well."
                    )
                self._pause(_pause_seconds(failures))
            else:
                [found] = outcome
                return found

    def _attempt(self, asked: _Asked) -> tuple[Any] | _Failed | _Busy:
        """One request to the endpoint that is freest; what it used is counted whatever comes of it."""
        used = Amount()
        try:
            self._budget.set_aside(asked.most)
            try:
                ticket = self._gate.enter()
                used = asked.most
                outcome, used = self._answer(ticket, asked)
                return outcome
            finally:
                self._budget.settle(asked.most, used)
        except StoppedError as error:
            raise RunError("stopped, since another request failed.") from error

    def _answer(self, ticket: Ticket, asked: _Asked) -> tuple[tuple[Any] | _Failed | _Busy, Amount]:
        """What came of a request, and what it used."""
        outcome: tuple[Any] | _Failed | _Busy
        response, used = self._send(f"{ticket.lane.url}{asked.path}", asked.body), asked.most
        if isinstance(response, _Failed):
            outcome = response
        elif response.status_code != 200:
            outcome = self._turned_down(ticket, asked.path, response)
        else:
            outcome, used = self._understood(f"{ticket.lane.url}{asked.path}", response, asked)
        if isinstance(outcome, _Busy):
            self._gate.busy(ticket, _pause_seconds(1) if outcome.wait is None else outcome.wait)
        elif isinstance(outcome, _Failed):
            self._gate.failed(ticket)
        else:
            self._gate.answered(ticket)
        spent = isinstance(outcome, tuple) or (isinstance(outcome, _Failed) and outcome.lost)
        return outcome, used if spent else Amount()

    def _send(self, url: str, body: dict[str, Any]) -> httpx2.Response | _Failed:
        try:
            return self._client.post(url, json=body, headers=self._headers())
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return _Failed(_say(url, error), lost=False)
        except httpx2.RequestError as error:
            return _Failed(_say(url, error))

    def _turned_down(self, ticket: Ticket, path: str, response: httpx2.Response) -> _Failed | _Busy:
        url, status = f"{ticket.lane.url}{path}", response.status_code
        words = self._without_key(response.text)
        said = f"{url}: status {status}: {' '.join(words.split())[:200]}"
        if status == 429 or (status == 503 and "retry-after" in response.headers):
            return _Busy(said, _retry_after(response))
        if status >= 500:
            return _Failed(said, lost=False)
        self._gate.failed(ticket)
        raise RefusedError(f"refused, {said}. {self._fix(ticket, status, words)}", status, words)

    def _understood(
        self, url: str, response: httpx2.Response, asked: _Asked
    ) -> tuple[tuple[Any] | _Failed, Amount]:
        """The result and what it used; a reply that cannot be read counts as all that it might have used."""
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            return _Failed(f"{url}: the answer is no JSON object"), asked.most
        used = self._count(reply, asked.most)
        try:
            found = _read(asked.read, reply)
        except UnusableError as error:
            return _Failed(f"{url}: {error}", error.final), used
        if self._cache:
            self._cache.put(asked.path, asked.body, reply)
        return (found,), used

    def _count(self, reply: dict[str, Any], most: Amount) -> Amount:
        """What the server says was used; all that might have been where it does not say."""
        usage = reply.get("usage")
        if not isinstance(usage, dict):
            return most
        read, written = (_count_of(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        with self._lock:
            self.usage.read += read
            self.usage.written += written
        return self._budget.amount(read, written)

    def _greet(self) -> None:
        """Once, before the first request: does anything answer at all? Not worth eight attempts to find out.

        Raises:
            RunError: nothing answers at any endpoint.
        """
        with self._lock:
            if self._greeted:
                return
            failed = [why for url in self._endpoints if isinstance(why := self._served(url), str)]
            if len(failed) == len(self._endpoints):
                raise RunError(
                    f"{failed[0]}: no server answers there. Start it, or correct {self.role}.endpoints."
                )
            self._greeted = True

    def _served(self, url: str) -> list[str] | str:
        """The models that an endpoint lists, none where it does not; else why it cannot be reached."""
        try:
            response = self._client.get(f"{url}/models", headers=self._headers(), timeout=_GREETING_SECONDS)
        except httpx2.RequestError as error:
            return _say(url, error)
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            return []

    @property
    def first(self) -> str:
        """The first endpoint, to be named in messages."""
        return self._endpoints[0]

    def models(self) -> list[str]:
        """The models that the first endpoint to answer lists.

        Raises:
            RunError: nothing answers at any endpoint.
        """
        self._greet()
        found = [self._served(url) for url in self._endpoints]
        return next((models for models in found if isinstance(models, list)), [])

    def _fix(self, ticket: Ticket, status: int, words: str) -> str:
        """What to do about a refusal, as far as its words tell."""
        lower = words.lower()
        if status in (401, 403):
            return f"Check the key in {self._key_env}."
        if "context" in lower or "maximum" in lower or "too long" in lower:
            return (
                "The text and its new tokens do not fit the server's context: shorten it, lower max_tokens."
            )
        served = self._served(ticket.lane.url) if status == 404 or "model" in lower else []
        if isinstance(served, list) and served:
            return f"Check {self.role}.model: the server has {', '.join(served[:5])}."
        return f"Check {self.role}.model and what the server can do."

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _without_key(self, text: str) -> str:
        """A server may echo what it was sent: the key must not come back in a message."""
        key = self._key()
        return text.replace(key, "…") if key else text

    def _key(self) -> str:
        key = os.environ.get(self._key_env, "").strip()
        if not (key.isascii() and (key.isprintable() or not key)):
            raise UsageError(f"the key in {self._key_env} holds characters that no key has. Set it anew.")
        return key


def _read(read: Read[Result], reply: dict[str, Any]) -> Result:
    """Surprises about a reply's form are told as such."""
    try:
        return read(reply)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnusableError(f"the answer has an unknown form ({type(error).__name__}: {error})") from error


def _say(url: str, error: Exception) -> str:
    return f"{url}: {type(error).__name__} {error}".strip()


def _count_of(usage: dict[str, Any], name: str) -> int:
    found = usage.get(name)
    return found if isinstance(found, int) and found >= 0 else 0


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
    return min(seconds, _LONGEST_PAUSE_SECONDS) if math.isfinite(seconds) and seconds >= 0 else None


def _pause_seconds(attempt: int) -> float:
    """Doubling pauses, shortened at random so that many clients do not come back together."""
    doubled = _FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1)
    return min(doubled, _LONGEST_PAUSE_SECONDS) * (0.5 + random.random() / 2)
