"""`penstock serve` as a user starts it, in a process of its own, and what it is asked; knows
nothing of what an answer should be.

What stands for the vision half makes vectors of a picture's colours
(tests/support/builders/card_time.py) unless the real one is asked for; decoding, queues, processes
and HTTP are the real ones.
"""

import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.run.stage_processes import family, stage_of
from tests.support.attacks import resident_bytes
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.servers import Answer, answer_to

STAND_IN = [
    sys.executable,
    "-m",
    "tests.support.builders.card_time",
    "--slower",
    "0.1",
    "--tiles",
    "off",
]
REAL = [*PENSTOCK, "serve", "--model", "demo"]
LISTENING = re.compile(r"^serving on http://[\w.:\[\]-]+:(\d+)", re.MULTILINE)
START_SECONDS = 120
END_SECONDS = 60
ASK_SECONDS = 60.0
LOG_LINES = 60
_numbers = itertools.count(int(time.time()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """A server that is up."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    token: str = ""

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = ASK_SECONDS,
    ) -> Answer:
        """One request on a connection of its own; it brings the token, unless it brings another
        login."""
        given = dict(headers or {})
        if self.token and not {"Authorization", "Cookie"} & given.keys():
            given["Authorization"] = f"Bearer {self.token}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=given)
            return answer_to(connection)

    def embed(self, picture: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", "/v1/embed", picture, headers)

    def raw(
        self, *parts: bytes, seconds: float = 10.0, end: bool = False, first: bool = False
    ) -> bytes:
        """Send bytes as they are; return what came until the other side closed, or said nothing for
        so long. With `end` this side is closed after them; of the `first` answer, its head is
        enough."""
        found = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            with contextlib.suppress(OSError):
                for part in parts:
                    connection.sendall(part)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while data := connection.recv(1 << 16):
                    found += data
                    if first and b"\r\n\r\n" in found:
                        break
        return found

    def is_up(self) -> bool:
        return self.process.poll() is None

    def pids(self, stage: str = "") -> list[int]:
        """Return its processes, or those that run a stage."""
        found = family(self.process.pid)
        return [pid for pid in found if stage_of(pid) == stage] if stage else found

    def memory(self) -> int:
        """Bytes of their own that all its processes have."""
        return sum(resident_bytes(pid, "RssAnon:", "RssShmem:") for pid in self.pids())


@contextlib.contextmanager
def serving(
    folder: Path,
    *options: str | os.PathLike[str],
    command: list[str] = STAND_IN,
    env: Mapping[str, str] | None = None,
    token: str = "",
) -> Iterator[Serving]:
    """Start a server on a free port, wait until it is ready, and end it. Who fails meanwhile is
    told the end of its log."""
    log = folder / "serve.log"
    if token:
        secret = folder / "token"
        secret.touch(0o600)
        secret.write_text(token + "\n")
        options = (*options, "--token-file", secret)
    whole = [*command, "--port", "0", *(os.fspath(each) for each in options)]
    with log.open("ab") as file:
        process = subprocess.Popen(
            whole,
            cwd=ROOT,
            env={**os.environ, "PENSTOCK_STORE": str(folder / "store"), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        found = Serving(port=_port(process, log), process=process, log=log, token=token)
        _wait_ready(found)
        yield found
    except BaseException as error:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        error.add_note("\n".join([f"$ {' '.join(whole)}", *lines]))
        raise
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> int:
    """End a server as systemd does; returns its exit status."""
    process.terminate()
    try:
        return process.wait(END_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if found := LISTENING.search(log.read_text(errors="replace")):
            return int(found[1])
        assert process.poll() is None, f"it ended with status {process.returncode}"
        time.sleep(0.05)
    raise AssertionError(f"it does not listen after {START_SECONDS} s")


def _wait_ready(server: Serving) -> None:
    until = time.monotonic() + START_SECONDS
    while (answer := server.ask("GET", "/readyz")).status != 200:
        assert time.monotonic() < until, f"it is not ready: {answer.body!r}"
        time.sleep(0.1)


def a_picture(size: tuple[int, int] = (64, 48), format: str = "JPEG") -> bytes:
    """A picture that nobody has seen before; its colours are its own."""
    draw = np.random.default_rng(next(_numbers))
    grain = draw.integers(0, 255, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(grain).resize(size, Image.Resampling.BILINEAR).save(file, format)
    return file.getvalue()


def vector_of(answer: Answer) -> Any:
    """[dimensions] of an answer of /v1/embed."""
    return np.frombuffer(base64.b64decode(json.loads(answer.body)["embedding"]), "<f2")


def status_of(message: bytes) -> int:
    """Return the status of an answer as it came over the wire; 0 of none."""
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", message)
    return int(found[1]) if found else 0
