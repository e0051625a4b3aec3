"""The HTTP engine against a server that is not ours: transformers' own `serve`, in a process of its own."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from solon.engines.base import GenerateRequest, Message, OptionRequest, completions, user
from solon.engines.http import HttpEngine
from solon.engines.http_budget import Budget
from solon.engines.http_client import Client
from solon.engines.local import LocalEngine
from solon.errors import LogprobsUnavailableError, RunError
from solon.feedback.options import CHOICES
from solon.roles import ServerSettings
from solon.settings import Sampling

GREEDY = Sampling(max_tokens=8, temperature=0.0)
_START_SECONDS = 120


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def address(tiny_model_folder: Path) -> Iterator[str]:
    port = _free_port()
    command = [
        *(sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny_model_folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"),
    ]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _up(url):
                assert process.poll() is None, process.stdout and process.stdout.read()
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.2)
            yield f"{url}/v1"
        finally:
            process.kill()


def _up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    except httpx2.RequestError:
        return False


def _engine(address: str, model: str) -> HttpEngine:
    settings = ServerSettings(concurrency=4)
    client = Client("judge", [address], "SOLON_API_KEY", settings, Budget(settings, "judge"))
    return HttpEngine(client, model, settings)


def test_greedy_answers_are_those_of_the_local_engine(
    address: str, tiny_model_folder: Path, tiny_engine: LocalEngine
) -> None:
    talk = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?"))
    requests = [GenerateRequest(c, GREEDY, 0) for c in (user("Hello"), talk, user("Tell me about the sea"))]
    served = completions(_engine(address, str(tiny_model_folder)), requests)
    for there, here in zip(served, completions(tiny_engine, requests), strict=True):
        assert (there.text, there.finish) == (here.text, here.finish)
        assert there.prompt_tokens == here.prompt_tokens


def test_a_server_without_logprobs_is_named(address: str, tiny_model_folder: Path) -> None:
    engine = _engine(address, str(tiny_model_folder))
    with pytest.raises(LogprobsUnavailableError, match=r"127\.0\.0\.1.*log-probabilities.*chain_of_thought"):
        engine.option_logprobs([OptionRequest(user("Which?"), "", CHOICES)])


def test_a_model_that_it_does_not_have_is_named(address: str) -> None:
    with pytest.raises(RunError, match=r"127\.0\.0\.1.*judge\.model"):
        completions(_engine(address, "no/such-model"), [GenerateRequest(user("Hello"), GREEDY, 0)])
