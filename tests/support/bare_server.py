"""Answers every request with the size of its body, through the servers of `penstock serve` and
`penstock studio` without a model. It runs in a process of its own, so that
its memory is the server's alone."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.pipeline import ROOT

SERVERS = ("serve", "studio")


LEFT: list[object] = []
"""Clients that left while they waited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BareServer:
    """A server that is up."""

    port: int
    pid: int

    def peak_bytes(self) -> int:
        """Return the most memory that the process had resident."""
        with open(f"/proc/{self.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


@contextlib.contextmanager
def bare_server(name: str) -> Iterator[BareServer]:
    """Yield one of SERVERS, in a process of its own."""
    words = [sys.executable, "-m", "tests.support.bare_server", name]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield BareServer(
                port=int(process.stdout.readline().rpartition(":")[2]), pid=process.pid
            )
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, then answer: of `/now` before that, of `/slow` a moment later, of `/left`
    with the number of clients that left while `/endless` waited for it, of `/pieces` without a
    length."""
    size, more = 0, scope["path"] != "/now"
    while more and (message := await receive())["type"] == "http.request":
        size, more = size + len(message["body"]), message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(0.4)
    if scope["path"] == "/endless":
        while (await receive())["type"] != "http.disconnect":
            pass
        LEFT.append(scope["client"])
    if scope["path"] == "/left":
        size = len(LEFT)
    text = b"%s %d;" % (scope["path"].encode(), size)
    headers = [] if scope["path"] == "/pieces" else [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def main(name: str) -> None:
    from artifacts.packages import loop_factory
    from flows.core.options.serving import ServeConfig
    from flows.interfaces.serve.listening import address_of, listening
    from flows.interfaces.serve.server import Answering
    from flows.interfaces.studio import server

    async def serve() -> None:
        answering = Answering(ServeConfig(model="demo", max_queue=64), listener)
        await answering.serve_app(app)
        await answering.wait_for_stop(asyncio.Event())
        await answering.end()

    with listening("127.0.0.1", 0) as listener:
        if name == "studio":
            asyncio.run(server.serve(app, listener, f"studio at {address_of(listener)}"))  # type: ignore[arg-type]
        else:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(serve())


if __name__ == "__main__":
    main(sys.argv[1])
