"""Opening a model for a role: in this process, or on a server."""

from solon.engines.base import Engine
from solon.engines.http import HttpEngine
from solon.engines.local import open_engine
from solon.judge_settings import JudgeSettings
from solon.models import ModelSource, pick_device, pick_dtype


def open_judge_engine(
    settings: JudgeSettings, source: ModelSource, device: str, dtype: str, batch_tokens: int
) -> Engine:
    """The engine of a judge: a server's, or a local one on `source`.

    `device` and `dtype` are settings such as `auto`. Errors are those of the engines.
    """
    if settings.engine == "http":
        return HttpEngine(settings.endpoints, source.name, settings.api_key_env)
    there = pick_device(device)
    return open_engine(source, there, pick_dtype(dtype, there), batch_tokens)
