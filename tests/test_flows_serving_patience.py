"""A client that asks and never reads the answer is left, and one that reads slowly is not."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import uvicorn

from flows.serving import patience
from flows.serving.patience import patient_protocol
from tests.support.on_a_loop import on_a_loop

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
PIECE = bytes(64 << 10)
PIECES = 128
"""Pieces of an answer: more than the buffers of both ends hold."""


def answered(seconds: float, client: Callable[[socket.socket], Awaitable[int]]) -> tuple[bool, int]:
    """Serve an answer of 8 MiB to a client that is left after so many seconds without reading.
    Return whether it was left, and what the client says."""
    found: list[Any] = []

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        left = asyncio.ensure_future(receive())
        while not left.done() or (await left)["type"] == "http.request":
            left = asyncio.ensure_future(receive()) if left.done() else left
            done, _ = await asyncio.wait({left}, timeout=0.01)
            if not done:
                break
        found.append(left.done())
        left.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def work() -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, http=patient_protocol(8), lifespan="off", log_level="warning", ws="none"
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asking.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(asking, listener.getsockname())
            await loop.sock_sendall(asking, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            size = await client(asking)
            while not found:
                await asyncio.sleep(0.01)
            found.append(size)
        server.should_exit = True
        await serving

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "READ_SECONDS", seconds)
        on_a_loop(work)
    return found[0], found[1]


async def never(asking: socket.socket) -> int:
    return 0


async def slowly(asking: socket.socket) -> int:
    loop, size = asyncio.get_running_loop(), 0
    while size < PIECES * len(PIECE):
        size += len(await loop.sock_recv(asking, 1 << 20))
        await asyncio.sleep(0.001)
    return size


def test_who_never_reads_is_left() -> None:
    assert answered(0.2, never) == (True, 0)


def test_who_reads_slowly_is_told_all() -> None:
    left, size = answered(10.0, slowly)
    assert not left and size >= PIECES * len(PIECE)
