"""Sends requests to a server over real HTTP from a process of its own, and records the answers and
their times.

Arrivals are Poisson and fixed before the first is sent. Latency counts from when a request was due,
not from when a connection was free for it, so a slow server is not asked less. Connections are kept
open, and of an answer no more is read than it must, for server and asker share the cores.
"""

import asyncio
import contextlib
import operator
import random
import resource
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from tests.support.builders.common import in_fresh_process

SEED = 20261121
PATIENCE_SECONDS = 20.0
"""After the last arrival; what has no answer by then has none."""
PLACE = b"%012d"
"""Digits in every request that no other has, so that nothing can be answered from a store."""
UNANSWERED = 0
"""In place of a status."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Requests for one server."""

    port: int
    head: str
    """Request line and headers, without those of length and host."""
    bodies: tuple[tuple[bytes, bytes], ...]
    """First and last part of each request in turn; a number stands between both."""
    rate: float
    """Requests a second, on average."""
    seconds: float
    warm: float = 4.0
    """Warm-up seconds, which are not reported."""
    connections: int = 256
    """At the most; who finds none free waits, and the wait counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the requests of one load got."""

    rate: float
    """Requests a second that were answered with 200, while it was asked."""
    statuses: dict[int, int]
    """Status → how many; 0 of those that got no answer, or found no connection until the end."""
    latencies: tuple[float, ...]
    """Seconds from due to answered with 200, in order of size."""
    answered: int
    """Requests that got any answer, those of the first seconds among them."""

    def latency(self, share: float) -> float:
        """Seconds within which this share of the requests was answered with 200; nan where none
        was."""
        found = self.latencies
        return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")


class _Asker:
    """All requests of a load, and the connections that they are sent on."""

    def __init__(self, load: Load, due: Sequence[float]) -> None:
        self.due, self.load = due, load
        self.answered = array("d", [0.0]) * len(due)
        self.statuses = array("i", [UNANSWERED]) * len(due)
        self.free: list[_Connection] = []
        self.opened = self.finished = 0
        self.waiting: deque[int] = deque()
        self.all = asyncio.Event()
        self._requests = []
        for first, last in load.bodies:
            length = len(first) + len(last) + len(PLACE % 0)
            message = f"{load.head}Host: 127.0.0.1:{load.port}\r\nContent-Length: {length}\r\n\r\n"
            self._requests.append((message.encode() + first, last))

    def request(self, number: int) -> bytes:
        first, last = self._requests[number % len(self._requests)]
        return b"%b%b%b" % (first, PLACE % (time.monotonic_ns() // 1000 % 10**12), last)

    def begin(self, number: int) -> None:
        if self.free:
            self.free.pop().send(number)
        else:
            self.waiting.append(number)
            if self.opened < self.load.connections:
                self.open()

    def open(self) -> None:
        self.opened += 1
        loop = asyncio.get_running_loop()
        making = loop.create_connection(partial(_Connection, self), "127.0.0.1", self.load.port)
        loop.create_task(making).add_done_callback(self._lost_before_made)

    def _lost_before_made(self, made: "asyncio.Task[object]") -> None:
        if not made.cancelled() and made.exception() is not None:
            self.opened -= 1
            if self.waiting:  # refused by the kernel: that is an answer too
                self.note(self.waiting.popleft(), UNANSWERED)

    def ready(self, connection: "_Connection") -> None:
        if self.waiting:
            connection.send(self.waiting.popleft())
        else:
            self.free.append(connection)

    def gone(self, connection: "_Connection", number: int) -> None:
        self.opened -= 1
        if connection in self.free:
            self.free.remove(connection)
        if number >= 0:
            self.note(number, UNANSWERED)
        if self.waiting:
            self.open()

    def note(self, number: int, status: int) -> None:
        self.answered[number] = time.monotonic()
        self.statuses[number] = status
        self.finished += 1
        if self.finished == len(self.due):
            self.all.set()

    async def run(self) -> float:
        """Send each request when it is due; returns when that began."""
        start = time.monotonic() + 0.1
        for number, due in enumerate(self.due):
            # Timers are up to a millisecond late, which counts as if it was the server's.
            if (left := start + due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            self.begin(number)
        await asyncio.sleep(max(0.0, start + self.load.warm + self.load.seconds - time.monotonic()))
        while self.waiting:
            self.note(self.waiting.popleft(), UNANSWERED)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.all.wait(), PATIENCE_SECONDS)
        return start


class _Connection(asyncio.Protocol):
    """One connection, which asks one thing at a time."""

    def __init__(self, asker: _Asker) -> None:
        self._asker = asker
        self._number = -1
        self._told = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._asker.ready(self)

    def send(self, number: int) -> None:
        self._number = number
        self._transport.write(self._asker.request(number))

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            self._told += data
            head, end, body = self._told.partition(b"\r\n\r\n")
            if not end:
                return
            self._left = _length(head) - len(body)
        if self._left <= 0:
            self._finish()

    def _finish(self) -> None:
        number, self._number = self._number, -1
        message, self._told, self._left = self._told, b"", 0
        if number >= 0:
            self._asker.note(number, int(message[9:12]))
        if b"connection: close" in message.partition(b"\r\n\r\n")[0].lower():
            self._transport.close()
        else:
            self._asker.ready(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._asker.gone(self, self._number)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise RuntimeError(f"an answer without a length: {head!r}")


def ask(load: Load) -> Answers:
    """Send a load from a process of its own and wait for its answers."""
    return in_fresh_process(_answers, load)


def _answers(load: Load) -> Answers:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    draw, due, at = random.Random(SEED), [], 0.0
    while (at := at + draw.expovariate(load.rate)) < load.warm + load.seconds:
        due.append(at)

    async def run() -> tuple[_Asker, float]:
        asker = _Asker(load, due)
        return asker, await asker.run()

    asker, start = asyncio.run(run())
    first, last = start + load.warm, start + load.warm + load.seconds
    inside = [first <= at < last for at in asker.answered]
    good = [status == 200 for status in asker.statuses]
    counted = [number for number in range(len(due)) if due[number] >= load.warm]
    return Answers(
        rate=sum(map(operator.and_, inside, good)) / load.seconds,
        statuses=Counter(asker.statuses[number] for number in counted),
        latencies=tuple(
            sorted(asker.answered[n] - start - due[n] for n in counted if asker.statuses[n] == 200)
        ),
        answered=sum(status != UNANSWERED for status in asker.statuses),
    )
