"""The way to one role's servers: addresses, the key, and what their refusals mean.

The key is read from the environment when a request is sent, and stands in no setting, no file and no message.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import httpx2

from solon.errors import RunError, UsageError

_GREETING_SECONDS = 10.0


class RefusedError(RunError):
    """A server says no; asking again would not help. `words` is what it says."""

    def __init__(self, message: str, status: int, words: str) -> None:
        self.status, self.words = status, words
        super().__init__(message)


@dataclass(frozen=True)
class Failed:
    """An attempt that is worth another one.

    `lost`: the server may have worked and counted. `slow`: it did not answer in time.
    """

    why: str
    final: RunError | None = None
    lost: bool = True
    slow: bool = False


class Link:
    """Used by many threads at once. `timeout` is in seconds a request."""

    def __init__(
        self, role: str, endpoints: Sequence[str], key_env: str, timeout: float, connections: int
    ) -> None:
        """Nothing is asked yet. `connections` are kept open between requests.

        Raises:
            UsageError: no endpoint, or one that is no http address.
        """
        wrong = [url for url in endpoints if not _is_address(url)]
        if wrong or not endpoints:
            what = f"`{wrong[0]}` is no http address" if wrong else "no endpoint is given"
            raise UsageError(f"{role}.endpoints: {what}. Give addresses such as http://127.0.0.1:8000/v1.")
        self.endpoints = [url.rstrip("/") for url in endpoints]
        self._role = role
        self._key_env = key_env
        self._lock = Lock()
        self._greeted = False
        self.unlisted = ""
        self._silent: str | None = None
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=connections)
        self._client = httpx2.Client(timeout=timeout, limits=limits)

    def send(self, url: str, body: dict[str, Any]) -> httpx2.Response | Failed:
        """The response, whatever its status, or why there is none."""
        try:
            return self._client.post(url, json=body, headers=self._headers())
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return Failed(_say(url, error), lost=False)
        except httpx2.RequestError as error:
            return Failed(_say(url, error), slow=isinstance(error, httpx2.ReadTimeout))

    def open(self) -> None:
        """Before new work: a server that did not answer may do so now."""
        self._silent = None

    def greet(self) -> None:
        """Once, before the first request: does anything answer at all? Not worth eight attempts to find out.

        Raises:
            RunError: nothing answers at any endpoint. Who comes later is told at once.
        """
        with self._lock:
            if self._silent is not None:
                raise RunError(self._silent)
            if self._greeted:
                return
            try:
                self.models()
            except RunError as error:
                self._silent = str(error)
                raise
            self._greeted = True

    def _served(self, url: str) -> list[str] | str:
        """The models that an endpoint lists, none where it does not; else why it cannot be reached.

        Where it refuses to list them, `unlisted` says so.
        """
        try:
            response = self._client.get(f"{url}/models", headers=self._headers(), timeout=_GREETING_SECONDS)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return _say(url, error)
        except httpx2.RequestError:
            return []  # Something answers, if slowly: requests have their own attempts
        if response.status_code != 200:
            self.unlisted = f"{url}/models: status {response.status_code}"
            if response.status_code in (401, 403):
                self.unlisted += f": check the key in {self._key_env}"
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            return []

    def models(self) -> list[str]:
        """The models that the first endpoint to answer lists.

        Raises:
            RunError: nothing answers at any endpoint.
        """
        failed = []
        for url in self.endpoints:
            found = self._served(url)
            if isinstance(found, list):
                return found
            failed.append(found)
        raise RunError(f"{failed[0]}: no server answers there. Start it, or correct {self._role}.endpoints.")

    def fix(self, endpoint: str, status: int, words: str, model: str) -> str:
        """What to do about a refusal of a request to `model`, as far as its words tell."""
        lower = words.lower()
        if status in (401, 403):
            return f"Check the key in {self._key_env}."
        if status == 429:
            return f"Check the account behind the key in {self._key_env}."
        if "chat template" in lower or "chat_template" in lower:
            return (
                f"A base model has no chat template: set {self._role}.http.interface=completions, which "
                "gives it a plain transcript."
            )
        if "context" in lower or "maximum" in lower or "too long" in lower:
            return (
                "The text and its new tokens do not fit the server's context: shorten it, lower max_tokens."
            )
        served = self._served(endpoint) if status == 404 or "model" in lower else []
        if isinstance(served, list) and served and model not in served:
            return f"Check {self._role}.model: the server has {', '.join(served[:5])}."
        if status == 404 and not endpoint.endswith("/v1"):
            return f"Check {self._role}.endpoints: most servers' addresses end in /v1."
        return f"Check {self._role}.model and what the server can do."

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def hurry(self) -> str:
        """What to do about servers that do not answer in time."""
        return f"Raise {self._role}.http.timeout, or lower {self._role}.http.concurrency."

    def without_key(self, text: str) -> str:
        """A server may echo what it was sent: the key must not come back in a message."""
        key = self._key()
        return text.replace(key, "…") if key else text

    def _key(self) -> str:
        key = os.environ.get(self._key_env, "").strip()
        if not (key.isascii() and (key.isprintable() or not key)):
            raise UsageError(f"the key in {self._key_env} holds characters that no key has. Set it anew.")
        return key


def _say(url: str, error: Exception) -> str:
    return f"{url}: {type(error).__name__} {error}".strip()


def _is_address(url: str) -> bool:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)
