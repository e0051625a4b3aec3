"""A chat server in a process of its own that misbehaves: delays, drops, truncates, refuses, sends nonsense.

Run: python -m tests.faulty_server [share of faulty answers]
It prints its address. A request's answer repeats its last message. Which requests go wrong and how is drawn
by a seeded generator in the order in which they arrive. GET /v1/stats tells how often each fault was sent.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any

FAULTS = ("delay", "hang", "drop", "truncate", "429", "500", "no_json", "no_logprobs")
HANG_SECONDS = 1.5  # Longer than the client's time-out in the tests.


def _reply(body: dict[str, Any], logprobs: bool) -> dict[str, Any]:
    text = body["messages"][-1]["content"]
    place = {"token": "x", "logprob": -0.25, "top_logprobs": [{"token": "x", "logprob": -0.25}]}
    return {
        "choices": [
            {
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": {"content": [place]} if logprobs else None,
                "token_ids": [7],
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }


class Server:
    def __init__(self, share: float) -> None:
        self._rng = random.Random(0)
        self._share = share
        self._sent: Counter[str] = Counter()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        names = [line.lower().split(":") for line in head.split("\r\n") if ":" in line]
        lengths = [value for name, value, *_ in names if name == "content-length"]
        raw = await reader.readexactly(int(lengths[0])) if lengths else b""
        path = head.split()[1]
        if path == "/v1/stats":
            return await self._send(writer, 200, json.dumps(self._sent))
        if path == "/v1/models":
            return await self._send(writer, 200, '{"data": [{"id": "m"}]}')
        fault = self._rng.choice(FAULTS) if self._rng.random() < self._share else "good"
        self._sent[fault] += 1
        return await self._answer(writer, fault, json.loads(raw))

    async def _answer(self, writer: asyncio.StreamWriter, fault: str, body: dict[str, Any]) -> bool:
        text = json.dumps(_reply(body, logprobs=fault != "no_logprobs"))
        if fault in ("delay", "hang"):
            await asyncio.sleep(0.05 if fault == "delay" else HANG_SECONDS)
        elif fault == "drop":
            return False
        elif fault == "429":
            return await self._send(writer, 429, "busy", "Retry-After: 0.02\r\n")
        elif fault == "500":
            return await self._send(writer, 500, "broken")
        elif fault == "no_json":
            text = text[: len(text) // 2]
        elif fault == "truncate":
            await self._send(writer, 200, text[:20], length=len(text))
            return False
        return await self._send(writer, 200, text)

    @staticmethod
    async def _send(
        writer: asyncio.StreamWriter, status: int, text: str, more: str = "", length: int | None = None
    ) -> bool:
        raw = text.encode()
        count = len(raw) if length is None else length
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {count}\r\n{more}\r\n".encode() + raw)
        await writer.drain()
        return True


async def _serve(share: float) -> None:
    server = await asyncio.start_server(Server(share).connected, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    async with server:
        await server.serve_forever()


@contextmanager
def faulty_server(share: float) -> Iterator[str]:
    """The address of a running server; it is killed after the block."""
    command = [sys.executable, "-m", "tests.faulty_server", str(share)]
    with Popen(command, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
