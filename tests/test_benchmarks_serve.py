"""The load that a server is put under is what is said, and so is what it answered."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from benchmarks._load import UNANSWERED, Load, ask

WAIT_SECONDS = 0.05
ANSWER = "HTTP/1.1 {status} X\r\nContent-Length: 2000\r\n{close}\r\n"


class Stub:
    """A server that answers after a while: every third request is refused, on a connection that is
    closed then; every tenth gets no answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.bodies: set[bytes] = set()
        self.port = 0
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._up.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._ending.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                self.bodies.add(await reader.readexactly(length))
                self.asked += 1
                if self.asked % 10 == 0:
                    break
                refused = self.asked % 3 == 0
                await asyncio.sleep(0 if refused else WAIT_SECONDS)
                close = "Connection: close\r\n" if refused else ""
                head = ANSWER.format(status=429 if refused else 200, close=close).encode()
                writer.write(head + b"x" * 2000)
                if refused:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    found = Stub()
    yield found
    found.stop()


def test_every_request_is_counted_with_what_it_got(stub: Stub) -> None:
    load = Load(
        port=stub.port,
        head="POST / HTTP/1.1\r\n",
        bodies=((b"h", b"t0"), (b"h", b"t1")),
        rate=150,
        seconds=0.7,
        warm=0,
    )
    answers = ask(load)
    request = sum(answers.statuses.values())
    assert 60 < request < 150  # the seed is fixed, and about 100 are expected
    assert stub.asked == len(stub.bodies)
    left = request - stub.asked  # those for which a connection was being opened at the end
    assert 0 <= left < 5
    assert answers.statuses[429] == answers.answered - answers.statuses[200]
    assert answers.statuses[UNANSWERED] == stub.asked // 10 + left
    assert answers.statuses[429] > answers.statuses[UNANSWERED]
    assert len(answers.latencies) == answers.statuses[200]
    assert answers.latency(0.5) >= answers.latency(0) >= WAIT_SECONDS
    assert 0 < answers.rate <= answers.statuses[200] / load.seconds
