"""How many requests may be in flight at each endpoint, and where the next one goes: least in flight first.

A server that says 429 is asked half as much at a time, and not before the time it names; every answer lets
the limit grow again by one a round (additive increase, multiplicative decrease: Chiu and Jain 1989, as TCP
does it). While others are well, an endpoint that keeps failing is sent one request now and then, to see
whether it is back.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition

_FAILING = 3  # Failures in a row after which others are preferred.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0


def pause_seconds(attempt: int) -> float:
    """Doubling pauses, shortened at random so that many clients do not come back together."""
    doubled = _FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 16)
    return min(doubled, _LONGEST_PAUSE_SECONDS) * (0.5 + random.random() / 2)


class StoppedError(Exception):
    """The work was stopped while a request waited."""


class Stoppable:
    """Something that threads wait for, until it changes or all work is stopped."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._stopped = False

    def open(self) -> None:
        with self._changed:
            self._stopped = False

    def stop(self) -> None:
        """Whoever waits is told, and so is whoever comes."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@dataclass
class Lane:
    """One endpoint: how many requests may be and are in flight, and until when it wants none.

    `failures` and `refusals` (to take a request now) are those since its last answer.
    """

    url: str
    limit: float
    in_flight: int = 0
    failures: int = 0
    refusals: int = 0
    free_at: float = 0.0
    cut_at: float = float("-inf")


@dataclass(frozen=True)
class Ticket:
    """Leave to send one request to an endpoint."""

    lane: Lane
    sent_at: float


class Gate(Stoppable):
    """Shared by all threads that send requests."""

    def __init__(
        self, endpoints: Sequence[str], most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.lanes = [Lane(url, float(most)) for url in endpoints]
        self._most = float(most)
        self._clock = clock

    def enter(self) -> Ticket:
        """Wait until an endpoint takes a further request. Raises StoppedError after `stop`."""
        with self._changed:
            while not self._stopped:
                now = self._clock()
                if lane := self._free(now):
                    lane.in_flight += 1
                    return Ticket(lane, now)
                waits = [lane.free_at - now for lane in self.lanes if lane.free_at > now]
                self._changed.wait(min(waits, default=None))
            raise StoppedError

    def free_at(self) -> float:
        """When the first endpoint wants requests again, by the clock; in the past if one does now."""
        with self._changed:
            return min(lane.free_at for lane in self.lanes)

    def answered(self, ticket: Ticket) -> None:
        lane = ticket.lane
        with self._leaving(lane):
            lane.failures = lane.refusals = 0
            lane.limit = min(self._most, lane.limit + 1 / lane.limit)

    def busy(self, ticket: Ticket, seconds: float | None) -> None:
        """The endpoint wants no request for so long; None or 0: not said, it is left alone ever longer."""
        lane = ticket.lane
        with self._leaving(lane):
            now = self._clock()
            lane.refusals += self._cut(ticket, now)
            told = seconds or pause_seconds(max(1, lane.refusals))
            lane.free_at = max(lane.free_at, now + told)

    def failed(self, ticket: Ticket, slow: bool = False) -> None:
        """`slow`: it did not answer in time; twice in a row, and it is asked less at a time."""
        lane = ticket.lane
        with self._leaving(lane):
            now = self._clock()
            lane.failures += 1
            if slow and lane.failures > 1:
                self._cut(ticket, now)
            if _failing(lane) and self._others_are_well():
                lane.free_at = max(lane.free_at, now + pause_seconds(1 + lane.failures - _FAILING))

    def _cut(self, ticket: Ticket, now: float) -> bool:
        """Halve the limit; requests sent before the last cut tell nothing new."""
        lane = ticket.lane
        new = ticket.sent_at > lane.cut_at
        if new:
            lane.cut_at = now
            lane.limit = max(1.0, lane.limit / 2)
        return new

    def _free(self, now: float) -> Lane | None:
        open_ = [lane for lane in self.lanes if lane.in_flight < int(lane.limit) and lane.free_at <= now]
        if self._others_are_well():
            # A well one that is full is worth waiting for: each try at a failing one costs an attempt.
            open_ = [lane for lane in open_ if not _failing(lane) or lane.in_flight == 0]
        return min(open_, key=lambda lane: (_failing(lane), lane.in_flight), default=None)

    def _others_are_well(self) -> bool:
        return not all(_failing(lane) for lane in self.lanes)

    @contextmanager
    def _leaving(self, lane: Lane) -> Iterator[None]:
        """The lock is held while the lane's state changes; then others may look."""
        with self._changed:
            lane.in_flight -= 1
            yield
            self._changed.notify_all()


def _failing(lane: Lane) -> bool:
    return lane.failures >= _FAILING
