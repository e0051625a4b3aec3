"""An HTTP engine as tests open it: no cache, no waiting between attempts."""

import time
from collections.abc import Callable
from typing import Any

from solon.engines.http import HttpEngine
from solon.engines.http_budget import Budget
from solon.engines.http_cache import ReplyCache
from solon.engines.http_client import Client
from solon.roles import ServerSettings


def http_engine(
    *urls: str,
    pause: Callable[[float], Any] = lambda seconds: None,
    cache: ReplyCache | None = None,
    key_env: str = "SOLON_API_KEY",
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> HttpEngine:
    """On the model `m` at these addresses; `settings` are those of `ServerSettings`."""
    server = ServerSettings(**settings)
    budget = Budget(server, "judge")
    return HttpEngine(Client("judge", list(urls), key_env, server, budget, cache, pause, clock), "m", server)
