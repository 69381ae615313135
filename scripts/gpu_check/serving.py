"""Starts a server on the device as a user does, and sends it HTTP requests."""

import contextlib
import http.client
import io
import itertools
import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._common import PENSTOCK
from scripts.gpu_check.runs import environment
from scripts.gpu_check.setting import Setting

LISTENS = re.compile(r"^serving on http://[^:]+:(\d+)", re.MULTILINE)
START_SECONDS = 180.0
END_SECONDS = 60.0
ASK_SECONDS = 240.0
LOOK_SECONDS = 0.1
SIZE = (640, 480)
COMMENT = b"\xff\xfe\x00\x16%020d"
"""A comment of a JPEG with a number in it, by which it is one that was never seen."""
AWAY = "away"
BATCH_SECONDS = "penstock_batch_seconds"


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server that is up."""

    port: int
    pid: int

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection that is kept open."""
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_SECONDS)
        with contextlib.closing(made):
            yield made

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """The status and the body of one answer."""
        with self.connection() as connection:
            return answer(connection, path, body)

    def told(self, path: str, body: bytes | None = None) -> Any:
        """What it answers. Raises RuntimeError where that is a refusal."""
        status, found = self.ask(path, body)
        if status != 200:
            raise RuntimeError(f"{path} was answered with {status}: {found.decode()[:200]}")
        return json.loads(found)

    def here(self) -> list[str]:
        """The halves that are on the device, or on the way to it."""
        halves = self.told("/v1/stats")["halves"]
        return [half["name"] for half in halves if half["state"] not in (AWAY, "waiting")]

    def batch_seconds(self) -> tuple[float, float]:
        """(seconds, batches) of the vision half so far."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        named = dict(line.rsplit(" ", 1) for line in lines if line.startswith(BATCH_SECONDS))
        found = (named[f'{BATCH_SECONDS}_{kind}{{half="embed"}}'] for kind in ("sum", "count"))
        seconds, count = map(float, found)
        return seconds, count

    def load(self, seconds: float, at_once: int, pause: float = 0.0) -> list[float]:
        """Ask for vectors of pictures that were never seen, so many at once, each as soon as one
        is answered; returns the seconds of each answer. Raises RuntimeError for a refusal."""
        numbers, jpeg = itertools.count(time.time_ns()), picture()
        end = time.monotonic() + seconds

        def asker(_: int) -> list[float]:
            taken = []
            with self.connection() as connection:
                while (began := time.monotonic()) < end:
                    body = jpeg[:2] + COMMENT % next(numbers) + jpeg[2:]
                    status, found = answer(connection, "/v1/embed", body)
                    if status != 200:
                        raise RuntimeError(f"answered with {status}: {found.decode()[:200]}")
                    taken.append(time.monotonic() - began)
                    time.sleep(pause)
            return taken

        with ThreadPoolExecutor(at_once) as pool:
            return [one for taken in pool.map(asker, range(at_once)) for one in taken]


def answer(
    connection: http.client.HTTPConnection, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    """The status and the body of an answer over a connection."""
    connection.request("GET" if body is None else "POST", path, body)
    found = connection.getresponse()
    return found.status, found.read()


def picture() -> bytes:
    """A JPEG of noise, drawn large."""
    import numpy as np
    from PIL import Image

    grain = np.random.default_rng(7).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(grain).resize(SIZE).save(file, "JPEG")
    return file.getvalue()


@contextlib.contextmanager
def served(setting: Setting, name: str, *options: str) -> Iterator[Served]:
    """A server with a store of its own, once it is ready. Raises RuntimeError with its last words
    where it does not come to that, or ends otherwise than well."""
    log, store = setting.folder / f"{name}.served.log", setting.folder / f"{name}-store"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*PENSTOCK, "serve", "--port", "0", "--store", str(store), *options],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield _ready(process, log)
        process.terminate()
        if code := process.wait(END_SECONDS):
            raise RuntimeError(f"the server ended with {code}: {_last(log)}")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _ready(process: "subprocess.Popen[bytes]", log: Path) -> Served:
    end = time.monotonic() + START_SECONDS
    server = None
    while time.monotonic() < end and process.poll() is None:
        if server is None and (found := LISTENS.search(log.read_text(errors="replace"))):
            server = Served(port=int(found[1]), pid=process.pid)
        if server is not None and server.ask("/readyz")[0] == 200:
            return server
        time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"the server is not ready: {_last(log)}")


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "not a word"
