"""A server that speaks OpenAI's protocol without a model, and misbehaves as the test asks.

It answers with the digest of the request, so that a test notices an answer stored under another
item. What it does depends on a number in the prompt and on how many requests came before: never on
time or chance. `python -m tests.support.builders.endpoint PORT SECONDS` runs a well-behaved one
that takes SECONDS for each answer.
"""

import asyncio
import contextlib
import hashlib
import json
import queue
import re
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from artifacts.packages import loop_factory

ONCE: dict[str, bytes] = {
    "429": b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n",
    "429 wait": b"HTTP/1.1 429 Too Many\r\nretry-after: 0.1\r\ncontent-length: 0\r\n\r\n",
    "503 date": b"HTTP/1.1 503 No\r\nretry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n"
    b"content-length: 0\r\n\r\n",
    "500": b'HTTP/1.1 500 Oops\r\ncontent-length: 18\r\n\r\n{"error": "broken"',
    "502 html": b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 13\r\n\r\n<h1>\x1b[31m</h1>",
    "cut body": b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n{",
    "cut head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "no byte": b"",
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "wrong json": b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{'choices': []",
    "no choices": b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"choices": []}',
    "odd shape": b'HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{"choices": [null]',
    "deep json": b"HTTP/1.1 200 OK\r\ncontent-length: 90000\r\n\r\n" + b"[" * 90000,
}
"""Raw answers to the first request of an item; afterwards it gets a good one."""
CLOSING = ("cut body", "cut head", "no byte", "no http", "bad chunk")
"""Those after which the connection is closed."""
FOR_GOOD: dict[str, tuple[int, Any]] = {
    "400": (400, {"error": {"message": "this picture is not to its liking\x1b[0m"}}),
    "null": (200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}),
    "filter": (200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
    "surrogate": (200, {"choices": [{"message": {"content": "\ud800"}, "finish_reason": "stop"}]}),
}
"""Status and body of every answer to an item."""


def message_of(digest: str, model: str = "m", fingerprint: str | None = "f1") -> dict[str, Any]:
    """A good answer about what has that digest."""
    message = {"role": "assistant", "content": f"caption {digest}"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }


def digest_in(request: dict[str, Any]) -> str:
    """What was asked: media and prompt."""
    text = json.dumps(request["messages"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Headers = dict[str, str]
Answer = tuple[int, Any] | bytes | None


class StandIn:
    """The server: what it was asked, and what it answers."""

    def __init__(self, plan: Sequence[str] = (), seconds: float = 0.0) -> None:
        self.plan = tuple(plan)
        self.seconds = seconds
        self.port = 0
        self.requests: list[dict[str, Any]] = []
        """Bodies of the chat requests, in order of arrival."""
        self.headers: list[Headers] = []
        """Headers of every request."""
        self.paths: list[str] = []
        self.times: Counter[str] = Counter()
        """How often each digest was asked."""
        self.at_once = self.most_at_once = 0
        self.answer: Callable[[dict[str, Any], str, int], Answer] | None = None
        """Answers instead of the plan: request, digest, how often it was asked before."""
        self.models: Any = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        self.pages: dict[str, Any] = {}
        """Path → JSON of other pages."""
        self.status_of_pages = 200
        self.names: list[str] = []
        """Names of the requests, by their header."""
        self.open: dict[asyncio.Future[None], asyncio.StreamWriter] = {}
        self.keeps = True
        """Whether it keeps what it was asked."""

    def behaviour(self, request: dict[str, Any]) -> str:
        """What it does to an item, by the last number in what it was asked."""
        if not self.plan:
            return ""
        number = int(re.findall(r"\d+", json.dumps(request["messages"]))[-1])
        return self.plan[number % len(self.plan)]

    def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer on a new connection."""
        task = asyncio.ensure_future(self.connected(reader, writer))
        self.open[task] = writer
        task.add_done_callback(self.open.pop)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
            ),
            contextlib.closing(writer),
        ):
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {
                    name.strip().lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                path = first.split()[1]
                if self.keeps:
                    self.headers.append(headers)
                    self.paths.append(path)
                if not await self._answered(path, headers, body, writer):
                    break

    async def _answered(
        self, path: str, headers: Headers, body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        if path.endswith("/models") or path in self.pages:
            _write(writer, self.status_of_pages, self.pages.get(path, self.models))
            return True
        if not path.endswith("/chat/completions"):
            _write(writer, 404, {"error": "no such page"})
            return True
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.seconds:
                await asyncio.sleep(self.seconds)
            return await self._completed(headers, body, writer)
        finally:
            self.at_once -= 1

    async def _completed(self, headers: Headers, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if not self.keeps:
            _write(writer, 200, message_of(hashlib.sha256(body).hexdigest()[:16]))
            return True
        request = json.loads(body)
        digest = digest_in(request)
        before = self.times[digest]
        self.times[digest] += 1
        self.requests.append(request)
        self.names.append(headers.get("x-request-id", ""))
        if self.answer is not None and (given := self.answer(request, digest, before)) is not None:
            if isinstance(given, bytes):
                writer.write(given)
                return False
            _write(writer, *given)
            return True
        name = self.behaviour(request)
        if name in FOR_GOOD:
            _write(writer, *FOR_GOOD[name])
        elif before == 0 and name in ONCE:
            writer.write(ONCE[name])
            return name not in CLOSING and "content-length: 1" not in ONCE[name].decode("latin-1")
        elif before == 0 and name in OTHERS:
            return await OTHERS[name](self, digest, headers, writer)
        else:
            _write(writer, 200, message_of(digest))
        await writer.drain()
        return True

    async def _huge(self, digest: str, headers: Headers, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99000000\r\n\r\n")
        for _ in range(99):
            writer.write(b"{" * 1_000_000)
            await writer.drain()
        return False

    async def _slow(self, digest: str, headers: Headers, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n")
        for _ in range(9000):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.1)
        return False

    async def _swapped(self, digest: str, headers: Headers, writer: asyncio.StreamWriter) -> bool:
        """Answer another request than the one of this connection."""
        for _ in range(100):
            if others := [name for name in self.names if name != headers.get("x-request-id")]:
                break
            await asyncio.sleep(0.01)
        _write(writer, 200, message_of("of another"), f"x-request-id: {others[-1]}\r\n")
        return True

    async def _late(self, digest: str, _: Headers, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.3)
        _write(writer, 200, message_of(digest))
        return True

    async def _two(self, digest: str, _: Headers, writer: asyncio.StreamWriter) -> bool:
        """Answer once more than there are requests."""
        _write(writer, 200, message_of(digest))
        _write(writer, 200, message_of("of another"))
        return True

    async def _two_late(self, digest: str, _: Headers, writer: asyncio.StreamWriter) -> bool:
        _write(writer, 200, message_of(digest))
        await writer.drain()
        await asyncio.sleep(0.001)
        _write(writer, 200, message_of("of another"))
        return True


OTHERS: dict[str, Callable[..., Awaitable[bool]]] = {
    "huge": StandIn._huge,
    "slow": StandIn._slow,
    "swapped": StandIn._swapped,
    "late": StandIn._late,
    "two": StandIn._two,
    "two late": StandIn._two_late,
}
TWENTY = (*ONCE, *FOR_GOOD, *OTHERS)


def _write(writer: asyncio.StreamWriter, status: int, body: Any, more: str = "") -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)


async def _serve(stand_in: StandIn, port: int, ready: Callable[[asyncio.Event], object]) -> None:
    """Serve until the event is set that `ready` gets."""
    server = await asyncio.start_server(
        stand_in.accepted, "127.0.0.1", port, limit=1 << 26, backlog=512
    )
    stand_in.port, end = server.sockets[0].getsockname()[1], asyncio.Event()
    ready(end)
    await end.wait()
    await asyncio.sleep(0.1)  # otherwise a connection that is being accepted would be lost
    server.close()
    for _ in range(2):
        for task, writer in list(stand_in.open.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def running(stand_in: StandIn, port: int = 0) -> Iterator[str]:
    """Run it on a thread, and give its address."""
    up: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    def work() -> None:
        asyncio.run(_serve(stand_in, port, lambda end: up.put((asyncio.get_running_loop(), end))))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    loop, end = up.get(timeout=10)
    try:
        yield f"http://127.0.0.1:{stand_in.port}/v1"
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)


if __name__ == "__main__":
    ours = StandIn(seconds=float(sys.argv[2]))
    ours.keeps = False
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(ours, int(sys.argv[1]), lambda _: print(ours.port, flush=True)))
