"""Servers with one encoder behind each, started for a load and ended after it, and what they take
meanwhile."""

import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._common import soft_jpegs
from benchmarks._load import PLACE, Load
from scripts.prefect_stack import free_port
from scripts.stage_processes import family
from stages.process.environment import child_environment

SIZES = {"small": (224, 224), "large": (1920, 1080)}
"""Name of pictures → width and height."""
PICTURES = 16
"""Different ones; a number in each makes it one that was never seen."""
START_SECONDS = 120.0
END_SECONDS = 40.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A server to be compared, and how it is asked."""

    name: str
    command: tuple[str, ...]
    """Module and arguments; the port comes last."""
    path: str
    json: bool = False
    """Whether pictures go in JSON, else as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One that is up."""

    way: Way
    port: int
    pid: int
    bodies: Path

    def load(self, size: str, rate: float, seconds: float, connections: int = 256) -> Load:
        kind = "application/json" if self.way.json else "image/jpeg"
        return Load(
            port=self.port,
            head=f"POST {self.way.path} HTTP/1.1\r\nContent-Type: {kind}\r\n",
            bodies=str(folder_of(self.bodies, size, self.way.json)),
            rate=rate,
            seconds=seconds,
            connections=connections,
        )

    def memory(self) -> int:
        """Bytes of their own of the server and all that it started; what they share counts once."""
        return sum(map(_proportional, family(self.pid)))

    def cpu_seconds(self) -> float:
        return sum(map(_cpu_seconds, family(self.pid)))


def folder_of(folder: Path, size: str, json: bool) -> Path:
    return folder / f"{size}-{'json' if json else 'jpeg'}"


def write_bodies(folder: Path) -> None:
    """Write every picture as bodies of requests, in two parts between which a number fits."""
    for size in SIZES:
        for json in (False, True):
            folder_of(folder, size, json).mkdir()
        for number, picture in enumerate(soft_jpegs(PICTURES, SIZES[size], quality=85)):
            text = base64.b64encode(picture)
            # A JPEG's comment may follow its first two bytes, and its length counts itself.
            comment = b"\xff\xfe" + (2 + len(PLACE % 0)).to_bytes(2, "big")
            for json, head, tail in (
                (False, picture[:2] + comment, picture[2:]),
                (True, b'{"number":"', b'","image":"' + text + b'"}'),
            ):
                path = folder_of(folder, size, json) / f"{number:02d}.head"
                path.write_bytes(head)
                path.with_suffix(".tail").write_bytes(tail)


@contextlib.contextmanager
def serving(way: Way, bodies: Path, log: Path) -> Iterator[Server]:
    """Start a server, wait until it has answered a request, and end it."""
    port = free_port()
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *way.command, "--port", str(port)],
            env={
                **child_environment(),
                "OMP_NUM_THREADS": "1",
                "PENSTOCK_STORE": str(bodies / f"store-{port}"),
            },
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    server = Server(way=way, port=port, pid=process.pid, bodies=bodies)
    try:
        _wait_up(server, process, log)
        yield server
    finally:
        _end(process)


def _wait_up(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    head = next(iter(sorted(folder_of(server.bodies, "small", server.way.json).glob("*.head"))))
    body = head.read_bytes() + PLACE % server.port + head.with_suffix(".tail").read_bytes()
    kind = "application/json" if server.way.json else "image/jpeg"
    asked = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{server.way.path}", body, {"Content-Type": kind}
    )
    until, told = time.monotonic() + START_SECONDS, ""
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(asked, timeout=START_SECONDS):
                return
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")
        except OSError as error:
            told = str(error)
        time.sleep(0.2)
    tail = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"{server.way.name} does not answer: {told}\n{tail}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _proportional(pid: int) -> int:
    """Return what a process has that no file backs; what it shares, with those that were forked
    like it, in parts. Libraries would hang on who else has them."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        own = [line for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
        return sum(int(line.split()[1]) << 10 for line in own)
    return 0


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields: Sequence[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0
