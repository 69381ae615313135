"""A server that speaks S3 on this machine, and what stands between it and the program to count,
delay and spoil requests."""

import contextlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.loopback import QuietHandler, served

SERVE = """
import sys
from moto.server import ThreadedMotoServer
if behind := float(sys.argv[1]):
    import datetime, moto.s3.models as models
    now = models.utcnow
    models.utcnow = lambda: now() - datetime.timedelta(seconds=behind)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
BUCKET = "bucket"
CLIPS = 12
"""Clips that whole runs are made over."""
SPOILT = (409, 412, 503, 504, 0)
"""The answers given instead of the server's; 0: none, and the connection ends."""
HOPS = ("connection", "keep-alive", "transfer-encoding", "content-length")
ASK_SECONDS = 60


@contextlib.contextmanager
def bucket_server(behind: float = 0.0) -> Iterator[int]:
    """Serve an empty bucket by a clock that is so many seconds behind; the port."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(behind)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
        yield port
    finally:
        process.communicate("")


def environment(port: int) -> dict[str, str]:
    """What tells the program where the server is and who asks."""
    return {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "a/secret+of/someone",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }


@dataclass(kw_only=True, slots=True)
class Between:
    """What happens on the way to a server, and what happened."""

    upstream: int
    """Port of the server."""
    delay: float = 0.0
    """Seconds that each answer takes longer."""
    spoil: float = 0.0
    """Share of the answers that become others; half of these requests are done all the same."""
    answers: tuple[int, ...] = SPOILT
    """What is answered instead."""
    draw: random.Random = field(default_factory=lambda: random.Random(7))
    counts: Counter[str] = field(default_factory=Counter)
    """Kind of request → how many there were."""
    names: list[tuple[str, str]] = field(default_factory=list)
    """Kind and path of each, in order."""
    sent: int = 0
    """Bytes of the bodies that went to the server."""
    received: int = 0
    """Bytes of the bodies that came back."""
    spoilt: Counter[int] = field(default_factory=Counter)
    """Answer given instead → how often."""
    watch: Callable[[str, str, bool], None] = lambda *_: None
    """Called with kind and path of a request, before the server is asked and after (True)."""
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def clear(self) -> None:
        """Count anew."""
        with self.lock:
            self.counts.clear()
            self.names.clear()
            self.spoilt.clear()
            self.sent = self.received = 0

    def fate(self) -> tuple[int | None, bool]:
        """What is answered instead, if anything is, and whether the server is asked at all."""
        with self.lock:
            if self.draw.random() >= self.spoil:
                return None, True
            answer = self.draw.choice(self.answers)
            self.spoilt[answer] += 1
            return answer, self.draw.random() < 0.5


@contextlib.contextmanager
def between(upstream: int, **fields: Any) -> Iterator[Between]:
    """Stand between the program and a server."""
    state = Between(upstream=upstream, **fields)
    with served(type("Handler", (Handler,), {"state": state})) as state.port:
        yield state


def kind_of(method: str, path: str) -> str:
    if method == "GET":
        return "list" if "list-type" in path else "get"
    return "delete" if "?delete" in path else method.lower()


class Handler(QuietHandler):
    """One connection of the program."""

    state: Between

    def setup(self) -> None:
        super().setup()
        self.server_side = http.client.HTTPConnection(
            "127.0.0.1", self.state.upstream, timeout=ASK_SECONDS
        )

    def finish(self) -> None:
        self.server_side.close()
        with contextlib.suppress(OSError):
            super().finish()

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        state, kind = self.state, kind_of(self.command, self.path)
        instead, request = state.fate()
        with state.lock:
            state.counts[kind] += 1
            state.names.append((kind, self.path))
            state.sent += len(body)
        if state.delay:
            time.sleep(state.delay)
        state.watch(kind, self.path, False)
        status, headers, answer = self.ask(body) if request else (0, [], b"")
        state.watch(kind, self.path, True)
        if instead is not None:
            status, headers, answer = instead, [], b""
        with state.lock:
            state.received += len(answer)
        self.close_connection = status == 0
        if status:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD" or not headers:
                self.send_header("content-length", str(len(answer)))
            with contextlib.suppress(OSError):  # who asked was killed
                self.end_headers()
                self.wfile.write(answer)

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        sent = {k: v for k, v in self.headers.items() if k.lower() not in HOPS}
        self.server_side.request(self.command, self.path, body=body, headers=sent)
        found = self.server_side.getresponse()
        answer = found.read()
        dropped = HOPS if self.command != "HEAD" else HOPS[:-1]
        return found.status, [h for h in found.getheaders() if h[0].lower() not in dropped], answer

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on


def variables_of_services() -> list[str]:
    """Variables that would lead elsewhere, or let somebody in."""
    return [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "AZURE_"))]
