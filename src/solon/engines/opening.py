"""Opening the model of a role: in this process, or on servers."""

from functools import cache
from pathlib import Path

from solon.embedded import cache_folder
from solon.engines.base import Engine
from solon.engines.http import HttpEngine
from solon.engines.http_budget import Budget
from solon.engines.http_cache import ReplyCache
from solon.engines.http_client import Client
from solon.engines.local import open_engine
from solon.models import ModelSource, pick_device, pick_dtype
from solon.roles import Role, RoleName, ServerSettings

_CACHE_FILE = "replies.sqlite"


def open_role(
    name: RoleName, role: Role, source: ModelSource, device: str, dtype: str, batch_tokens: int
) -> Engine:
    """The engine of a role: on servers, or on `source` by vLLM or transformers.

    `device` and `dtype` are settings such as `auto`. Errors are those of the engines.
    """
    if role.engine == "http":
        settings = role.http
        setting = f"{name}.http.cache"
        client = Client(
            name,
            role.endpoints,
            role.api_key_env,
            settings,
            _budget(name, settings.model_dump_json()),
            _replies(setting, settings.cache) if settings.cache != "off" else None,
        )
        return HttpEngine(client, source.name, settings)
    if role.engine == "vllm":
        from solon.engines.vllm import open_vllm

        return open_vllm(source, dtype, role.vllm)
    there = pick_device(device)
    return open_engine(source, there, pick_dtype(dtype, there), batch_tokens)


@cache
def _budget(name: RoleName, settings: str) -> Budget:
    """One for all stages of a command: its limits are the command's. The settings are JSON, to be a key."""
    return Budget(ServerSettings.model_validate_json(settings), name)


@cache
def _replies(setting: str, file: str) -> ReplyCache:
    path = Path(file).expanduser() if file else cache_folder() / _CACHE_FILE
    return ReplyCache(path, setting)
