"""A hard limit on the tokens and the money that servers may use up.

Before a request is sent, the most that it could use is set aside: a token is at least one byte of the
prompt, and new tokens are limited. What it did use replaces that when the answer comes. So the sum does not
pass the limit, not even with many requests in flight; and an answer that was lost on its way counts
whole, since the server may have counted it. A server whose chat template adds a long text of its own is
found out by its first answer: so much more is set aside from then on.
"""

from dataclasses import dataclass

from solon.engines.http_gate import Stoppable, StoppedError
from solon.errors import RunError
from solon.roles import ServerSettings

_TEMPLATE_TOKENS = 16  # That a chat template may put around each turn.
_MILLION = 1e6


@dataclass(frozen=True)
class Amount:
    """Tokens, and what they cost."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens - other.tokens, self.cost - other.cost)


class Budget(Stoppable):
    """Shared by all threads that send requests for a role."""

    def __init__(self, settings: ServerSettings, role: str) -> None:
        super().__init__()
        self._settings = settings
        self._role = role
        self._spent = Amount()
        self._aside = Amount()
        self._unforeseen = 0  # Tokens that a request took beyond the most that was thought possible

    @property
    def spent(self) -> Amount:
        return self._spent

    def most(self, prompt_bytes: int, turns: int, new_tokens: int) -> Amount:
        """The most that a request can use."""
        return self.amount(prompt_bytes + _TEMPLATE_TOKENS * turns + self._unforeseen, new_tokens)

    def amount(self, read: int, written: int) -> Amount:
        cost = read * self._settings.price_read + written * self._settings.price_written
        return Amount(read + written, cost / _MILLION)

    def set_aside(self, most: Amount) -> None:
        """Wait until so much is left, which may come back from requests that used less.

        Raises:
            RunError: it is not left, and nothing is in flight that could come back.
            StoppedError: `stop` was called while waiting.
        """
        with self._changed:
            while not self._fits(self._spent + self._aside + most):
                if self._stopped:
                    raise StoppedError
                if not self._aside.tokens:
                    raise self._used_up(most)
                self._changed.wait()
            self._aside += most

    def settle(self, aside: Amount, used: Amount) -> None:
        """What was set aside is replaced by what was used."""
        with self._changed:
            self._aside -= aside
            self._spent += used
            self._unforeseen = max(self._unforeseen, used.tokens - aside.tokens)
            self._changed.notify_all()

    def _fits(self, sum_: Amount) -> bool:
        tokens, cost = self._settings.max_tokens, self._settings.max_spending
        return (tokens is None or sum_.tokens <= tokens) and (cost is None or sum_.cost <= cost + 1e-12)

    def _used_up(self, most: Amount) -> RunError:
        settings, spent = self._settings, self._spent
        limits = []
        if settings.max_tokens is not None:
            limits.append(f"{self._role}.http.max_tokens={settings.max_tokens} ({spent.tokens} used)")
        if settings.max_spending is not None:
            limits.append(f"{self._role}.http.max_spending={settings.max_spending:g} ({spent.cost:.4g} used)")
        return RunError(
            f"the limit {' and '.join(limits)} does not allow the next request, which may take "
            f"{most.tokens} tokens. What was answered is kept: raise the limit and run again."
        )
