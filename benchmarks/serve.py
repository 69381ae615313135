"""Penstock's server with batches against itself with one request at a time, over real HTTP, with an
encoder that takes a card's time; prints a table.

Requests come as strangers come (Poisson), whether or not others were answered; latency counts from
when a request was due. Every picture is another one, so no store answers. Both servers have the
same two cores, which the asking process shares; they take turns, a round each, and a line is the
median of rounds.

    python -m benchmarks.serve [--seconds 8] [--rounds 3] [--pictures small,large] [--quick]
"""

import argparse
import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from stages.process.child_environment import child_environment
from stages.process.host_memory import cpu_line
from tests.support.builders.card_time import PICTURE_SECONDS, SIDE, START_SECONDS
from tests.support.builders.common import MIB, cells, heads, in_fresh_process, soft_jpegs
from tests.support.builders.load import PLACE, UNANSWERED, Answers, Load, ask

LIGHT = 20.0
"""Requests a second."""
HEAVY = {"small": 800.0, "large": 400.0}
"""Pictures → requests a second that are well above what the server answers."""
SIZES = {"small": (224, 224), "large": (1920, 1080)}
"""Name of pictures → width and height."""
PICTURES = 16
"""Different ones; a number in each makes it one that was never seen."""
BATCHES = (32, 1)
HEADS = (
    "pictures | asked/s | batches up to | answered/s | x one at a time | p50 ms | p90 | p99 | 429"
    " | never answered | ms CPU a request | MiB"
)
START_SECONDS_AT_MOST = 120.0
END_SECONDS = 40.0
TICKS = os.sysconf("SC_CLK_TCK")
PATH = "/v1/embed"
Bodies = tuple[tuple[bytes, bytes], ...]


class Trial(NamedTuple):
    """One load on one server."""

    size: str
    asked: float
    """Requests a second."""
    batch: int
    answers: Answers
    cpu_seconds: float
    """Of all processes of the server, a request that it answered."""
    memory: int
    """Bytes."""

    @property
    def what(self) -> tuple[str, float, int]:
        return self[:3]


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", default=",".join(SIZES))
    options.add_argument("--seconds", type=float, default=8.0, help="of each load")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--quick", action="store_true", help="does it run at all?")
    given = options.parse_args(arguments)
    if given.quick:
        given.pictures, given.rounds, given.seconds = "small", 1, 4.0
    card = f"{1000 * START_SECONDS:.0f} ms a batch and {1000 * PICTURE_SECONDS:.1f} a picture"
    cores = f"{len(os.sched_getaffinity(0))} cores for the server and asking together"
    print(f"{cpu_line('model name')}, {cores}; a card's time: {card}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-serve-") as folder:
        in_fresh_process(write_model, Path(folder, "model"))
        trials = list(compared(given, Path(folder)))
    print("\n".join([heads(HEADS), *lines(trials)]))


def write_model(folder: Path) -> None:
    """Write a small CLIP that sees pictures of the size that the stand-in does: by that they are
    decoded."""
    from tests.support.builders.clip import save_clip

    save_clip(folder, None, image_size=SIDE, patch_size=SIDE // 7)


def bodies_of(size: str) -> Bodies:
    """Every picture in two parts, between which a number fits as a comment: it may follow a JPEG's
    first two bytes, and its length counts itself."""
    comment = b"\xff\xfe" + (2 + len(PLACE % 0)).to_bytes(2, "big")
    pictures = soft_jpegs(PICTURES, SIZES[size], quality=85)
    return tuple((picture[:2] + comment, picture[2:]) for picture in pictures)


def compared(given: argparse.Namespace, folder: Path) -> Iterator[Trial]:
    """Ask every server, one after the other, as many rounds as are wanted."""
    bodies = {size: bodies_of(size) for size in given.pictures.split(",")}
    for number in range(given.rounds):
        for batch in BATCHES:
            with serving(folder, batch, bodies[next(iter(bodies))][0]) as (port, pid):
                for size in bodies:
                    for rate in (LIGHT, HEAVY[size]):
                        load = Load(
                            port=port,
                            head=f"POST {PATH} HTTP/1.1\r\nContent-Type: image/jpeg\r\n",
                            bodies=bodies[size],
                            rate=rate,
                            seconds=given.seconds,
                        )
                        before = cpu_seconds(pid)
                        answers = ask(load)
                        used = (cpu_seconds(pid) - before) / max(1, answers.answered)
                        message = f"round {number + 1}: {size} {rate:.0f}/s, batches of {batch}"
                        print(f"{message}: {answers.rate:.0f}/s", file=sys.stderr)
                        yield Trial(size, rate, batch, answers, used, memory(pid))


@contextlib.contextmanager
def serving(folder: Path, batch: int, body: tuple[bytes, bytes]) -> Iterator[tuple[int, int]]:
    """Start a server, wait until it has answered a request, and end it; gives port and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = ("--max-batch", str(batch), "--tiles", "off", "--model", str(folder / "model"))
    log = folder / "server.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.builders.card_time",
                *options,
                "--port",
                str(port),
            ],
            env={
                **child_environment(),
                "OMP_NUM_THREADS": "1",
                "PENSTOCK_STORE": str(folder / f"store-{port}"),
            },
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        _wait_up(process, port, (PLACE % port).join(body), log)
        yield port, process.pid
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_up(process: "subprocess.Popen[bytes]", port: int, body: bytes, log: Path) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}", body, {"Content-Type": "image/jpeg"}
    )
    until, message = time.monotonic() + START_SECONDS_AT_MOST, ""
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS_AT_MOST):
                return
        except urllib.error.HTTPError as error:
            message = error.read().decode(errors="replace")
        except OSError as error:
            message = str(error)
        time.sleep(0.2)
    raise RuntimeError(f"no answer: {message}\n{log.read_text(errors='replace')[-3000:]}")


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [each for child in children.read_text().split() for each in family(int(child))]
    return found


def memory(pid: int) -> int:
    """Anonymous bytes of a server and its children; each process counts its share of pages that
    forks share. Pages of libraries are left out, as their share depends on other programs."""
    total = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            own = [line for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
            total += sum(int(line.split()[1]) << 10 for line in own)
    return total


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a server and of all that it started and that is still there."""
    ticks = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            fields: Any = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def lines(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield the table, in Markdown."""
    for what in dict.fromkeys(trial.what for trial in trials):
        size, request, batch = what
        found = [trial for trial in trials if trial.what == what]

        def middle(values: Iterator[float], figures: int = 0) -> str:
            value = median(values)
            return "-" if math.isnan(value) else f"{value:,.{figures}f}"

        latency = [
            middle((1000 * trial.answers.latency(share) for trial in found), 1)
            for share in (0.5, 0.9, 0.99)
        ]
        refused, lost = (
            middle(trial.answers.statuses.get(status, 0) for trial in found)
            for status in (429, UNANSWERED)
        )
        one = [trial.answers.rate for trial in trials if trial.what == (size, request, 1)]
        pairs = [a.answers.rate / b for a, b in zip(found, one, strict=True) if b]
        times = f"{median(pairs):.1f}" if pairs and request != LIGHT else ""
        answered = middle(trial.answers.rate for trial in found)
        used = middle((1000 * trial.cpu_seconds for trial in found), 1)
        text = ("x".join(map(str, SIZES[size])), f"{request:.0f}", batch, answered, times)
        held = middle(trial.memory / MIB for trial in found)
        yield cells([*text, *latency, refused, lost, used, held])


if __name__ == "__main__":
    main()
