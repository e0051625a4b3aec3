"""A chat server for tests, on a port of this machine: it answers as a function says, and keeps what came."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Asked:
    """A request that came: its path, its JSON, and what it gave as its key."""

    path: str
    body: dict[str, Any]
    authorization: str | None


@dataclass
class Answer:
    """What the server sends: a status, a body (JSON, or a text as it stands) and further headers."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    url: str
    asked: list[Asked]


def message(text: str, logprobs: list[Any] | None = None, finish: str = "stop") -> dict[str, Any]:
    """A chat completion. `logprobs` has, for each token, (token, [(candidate, log-probability), …])."""
    content = None
    if logprobs is not None:
        content = [
            {"token": token, "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}
            for token, top in logprobs
        ]
    return {
        "choices": [
            {
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish,
                "logprobs": {"content": content} if content is not None else None,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


@contextmanager
def serving(
    answer: Callable[[Asked], Answer], models: Sequence[str] = (), listed: Answer | None = None
) -> Iterator[Server]:
    """A running server that lists these models, or answers so; it is gone after the block."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = listed or Answer({"data": [{"id": model} for model in models]})
            self._send(found if self.path == "/v1/models" else Answer("not here", 404))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            one = Asked(self.path, body, self.headers.get("Authorization"))
            asked.append(one)
            self._send(answer(one))

        def _send(self, given: Answer) -> None:
            raw = (given.body if isinstance(given.body, str) else json.dumps(given.body)).encode()
            self.send_response(given.status)
            for name, value in {"Content-Length": str(len(raw)), **given.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
