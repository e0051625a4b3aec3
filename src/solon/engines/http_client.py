"""Sending requests to model servers: side by side, over several endpoints, again where one is busy or fails.

A refusal ends the work at once, with the server's words. How a server is reached is `engines.http_link`'s.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any, TypeVar

import httpx2

from solon.engines.http_budget import Amount, Budget
from solon.engines.http_cache import ReplyCache
from solon.engines.http_gate import Gate, StoppedError, Ticket, pause_seconds
from solon.engines.http_link import Failed, Link, RefusedError
from solon.errors import RunError
from solon.roles import ServerSettings

_ATTEMPTS = 8  # That may fail; being told to wait is no failure.
_LACKING = 3  # Replies without what was asked for after which it is no accident.
_SPENT = "insufficient_quota"  # In a 429 that no waiting helps
_PATIENCE_SECONDS = 1800.0  # A request that is told to wait does so for so long at the most.

Request = TypeVar("Request")
Result = TypeVar("Result")
Read = Callable[[dict[str, Any]], Result]
Pause = Callable[[float], Any]


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
class _Busy:
    """The server asks to wait; it says how many seconds, or not."""

    why: str
    wait: float | None


@dataclass
class _Door:
    """A lock, and how many threads wait for it or hold it."""

    lock: Lock = field(default_factory=Lock)
    people: int = 0


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is asked yet. `pause` waits between attempts, `clock` tells seconds.

        Raises:
            UsageError: no endpoint, or one that is no http address.
        """
        self.usage = Usage()
        self._at_once = settings.concurrency * len(endpoints)
        self._link = Link(role, endpoints, key_env, settings.timeout, self._at_once)
        self._budget = budget
        self._cache = cache
        self._clock = clock
        self._gate = Gate(self._link.endpoints, settings.concurrency, clock)
        self._stop = Event()
        self._pause: Pause = pause or self._stop.wait
        self._lock = Lock()
        self._doors: dict[str, _Door] = {}

    @property
    def first(self) -> str:
        """The first endpoint, to be named in messages."""
        return self._link.endpoints[0]

    def side_by_side(
        self, work: Callable[[Request], Result], requests: Sequence[Request]
    ) -> Iterator[tuple[int, Result]]:
        """The place and the result of each request, as they finish.

        An error, or leaving the loop, stops all that is not finished. Only so many requests are taken up at
        once as are in flight.
        """
        self._stop.clear()
        self._link.open()
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
        if self._cache is None:
            return self._answered(path, body, read, new_tokens)
        # Who asks what is being asked already waits for that answer: nothing is paid for twice.
        with self._one_by_one(ReplyCache.key(path, body)):
            known = self._cache.get(path, body)
            if known is not None:
                # What an older version kept may lack what is read now; it is then asked again.
                with suppress(UnusableError):
                    found: Result = _read(read, known)
                    return found
            return self._answered(path, body, read, new_tokens)

    @contextmanager
    def _one_by_one(self, key: str) -> Iterator[None]:
        """Within the block no other thread is in it with the same key."""
        with self._lock:
            door = self._doors.setdefault(key, _Door())
            door.people += 1
        try:
            with door.lock:
                yield
        finally:
            with self._lock:
                door.people -= 1
                if not door.people:
                    del self._doors[key]

    def _answered(self, path: str, body: dict[str, Any], read: Read[Result], new_tokens: int) -> Result:
        """As `post`, from a server."""
        found: Result
        self._link.greet()
        turns = body.get("messages") or [None]
        prompt_bytes = len(json.dumps(body, ensure_ascii=False).encode())
        asked = _Asked(path, body, read, self._budget.most(prompt_bytes, len(turns), new_tokens))
        failures, lacking, refused_at = 0, 0, None
        while True:
            outcome = self._attempt(asked)
            if isinstance(outcome, _Busy):
                # Being told to wait costs no attempt: the gate holds the endpoint back for that long.
                refused_at = self._clock() if refused_at is None else refused_at
                if max(self._clock(), self._gate.free_at()) > refused_at + _PATIENCE_SECONDS:
                    raise RunError(f"told to wait for more than {_PATIENCE_SECONDS:.0f} s: {outcome.why}.")
            elif isinstance(outcome, Failed):
                failures += 1
                lacking += outcome.final is not None
                if failures == _ATTEMPTS or lacking == _LACKING:
                    fix = self._link.hurry() if outcome.slow else "Check that the server is well."
                    raise outcome.final or RunError(
                        f"no usable answer in {_ATTEMPTS} attempts: {outcome.why}. {fix}"
                    )
                self._pause(pause_seconds(failures))
            else:
                [found] = outcome
                return found

    def _attempt(self, asked: _Asked) -> tuple[Any] | Failed | _Busy:
        """One request to the endpoint that is freest; what it used is counted whatever comes of it."""
        used = Amount()
        try:
            self._budget.set_aside(asked.most)
            try:
                ticket = self._gate.enter()
                used = asked.most
                outcome, used = self._answer(ticket, asked)
                return outcome
            except RefusedError:
                used = Amount()
                raise
            finally:
                self._budget.settle(asked.most, used)
        except StoppedError as error:
            raise RunError("stopped, since another request failed.") from error

    def _answer(self, ticket: Ticket, asked: _Asked) -> tuple[tuple[Any] | Failed | _Busy, Amount]:
        """What came of a request, and what it used."""
        try:
            outcome, used = self._outcome(ticket.lane.url, asked)
        except BaseException:
            self._gate.failed(ticket)
            raise
        if isinstance(outcome, _Busy):
            self._gate.busy(ticket, outcome.wait)
        elif isinstance(outcome, Failed):
            self._gate.failed(ticket, outcome.slow)
        else:
            self._gate.answered(ticket)
        spent = isinstance(outcome, tuple) or (isinstance(outcome, Failed) and outcome.lost)
        return outcome, used if spent else Amount()

    def _outcome(self, endpoint: str, asked: _Asked) -> tuple[tuple[Any] | Failed | _Busy, Amount]:
        """Send it and look at what comes. Raises RefusedError: the server says no."""
        url = f"{endpoint}{asked.path}"
        response = self._link.send(url, asked.body)
        if isinstance(response, Failed):
            return response, asked.most
        if response.status_code != 200:
            return self._turned_down(endpoint, url, response, str(asked.body.get("model"))), asked.most
        return self._understood(url, response, asked)

    def _turned_down(self, endpoint: str, url: str, response: httpx2.Response, model: str) -> Failed | _Busy:
        status = response.status_code
        words = self._link.without_key(response.text)
        said = f"{url}: status {status}: {' '.join(words.split())[:200]}"
        spent = status == 429 and _SPENT in words
        if (status == 429 and not spent) or (status == 503 and "retry-after" in response.headers):
            return _Busy(said, retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC)))
        if status == 408:
            return Failed(said, slow=True)
        if status >= 500 and "supported" not in words.lower():
            # A proxy's 502 or 504 comes after the server behind it has worked.
            return Failed(said, lost=status in (502, 504))
        fix = self._link.fix(endpoint, status, words, model)
        raise RefusedError(f"refused, {said}. {fix}", status, words)

    def _understood(
        self, url: str, response: httpx2.Response, asked: _Asked
    ) -> tuple[tuple[Any] | Failed, Amount]:
        """The result and what it used; a reply that cannot be read counts as all that it might have used."""
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            return Failed(f"{url}: the answer is no JSON object"), asked.most
        used = self._count(reply, asked.most)
        try:
            found = _read(asked.read, reply)
        except UnusableError as error:
            return Failed(f"{url}: {error}", error.final), used
        if self._cache:
            self._cache.put(asked.path, asked.body, reply)
        return (found,), used

    def _count(self, reply: dict[str, Any], most: Amount) -> Amount:
        """What the server says was used; all that might have been where it does not say."""
        usage = reply.get("usage")
        if not isinstance(usage, dict):
            return most
        read, written = (_count_of(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        if read is None or written is None:
            return most
        with self._lock:
            self.usage.read += read
            self.usage.written += written
        return self._budget.amount(read, written)


def _read(read: Read[Result], reply: dict[str, Any]) -> Result:
    """Surprises about a reply's form are told as such."""
    try:
        return read(reply)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnusableError(f"the answer has an unknown form ({type(error).__name__}: {error})") from error


def _count_of(usage: dict[str, Any], name: str) -> int | None:
    found = usage.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return int(found) if math.isfinite(found) and found >= 0 else None


def retry_after(told: str, now: datetime) -> float | None:
    """Seconds that a server asks to wait, by a number or a date (RFC 9110, sec. 10.2.3); None: neither."""
    try:
        seconds = float(told)
    except ValueError:
        with suppress(ValueError):
            date = parsedate_to_datetime(told)
            return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
