"""Penstock's server under ten times what it can answer: its memory before, meanwhile and after,
what it answers, and whether it is as quick after it as before."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks._common import MIB, cells, heads, met
from benchmarks._load import UNANSWERED, Answers, ask
from benchmarks._served import Server, Way, serving
from flows.serving.record_cache import RECENT_BYTES

TIMES = 10
LIGHT = 20.0
LIGHT_SECONDS = 10.0
LOOK_SECONDS = 1.0
CONNECTIONS = 3
"""Times as many as may wait: who finds none free has not come to the server."""
ALLOWED = {200, 429, 503}
KEPT_BYTES = 2 * RECENT_BYTES
"""What a server keeps of recent answers, at the most: vectors, and what was found in files."""
FLAT = 0.05
"""Part of its memory by which it may grow beside that."""


class Memory:
    """The memory of a server, looked at every second; a context manager."""

    def __init__(self, server: Server) -> None:
        self.seen: list[int] = []
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self.seen.append(self._server.memory())

    def grown(self) -> int:
        """Return the last quarter's most above the first quarter's most, in bytes."""
        part = max(1, len(self.seen) // 4)
        return max(self.seen[-part:]) - max(self.seen[:part])


def lines(way: Way, batch: int, folder: Path, seconds: float) -> Iterator[str]:
    """Overload a server and say what became of it."""
    with serving(way, folder, folder / "overload.log") as server:
        queue = queue_of(server)
        before = ask(server.load("small", LIGHT, LIGHT_SECONDS))
        # More than it answers, and less than what only refusing takes.
        capacity = ask(server.load("small", 4 * _guess(server), LIGHT_SECONDS)).rate
        at_first = server.memory()
        with Memory(server) as memory:
            during = ask(server.load("small", TIMES * capacity, seconds, CONNECTIONS * queue))
        at_last = server.memory()
        after = ask(server.load("small", LIGHT, LIGHT_SECONDS))
    asked = f"{TIMES * capacity:.0f}/s asked for {seconds:.0f} s"
    yield f"Overload: {capacity:.0f}/s answered at the most, {asked}\n"
    yield heads(" | MiB | p50 ms at 20/s | p99")
    yield _row("before", at_first, before)
    yield f"| meanwhile, at the most | {max(memory.seen) / MIB:,.0f} | | |"
    yield _row("after", at_last, after)
    yield ""
    yield from verdicts(during, memory, capacity, queue + batch)


def _guess(server: Server) -> float:
    return ask(server.load("small", 300.0, 5.0)).rate


def verdicts(during: Answers, memory: Memory, capacity: float, before: int) -> Iterator[str]:
    """Say whether it held."""
    told = ", ".join(
        f"{count:,} x {status or 'never answered or sent'}"
        for status, count in sorted(during.statuses.items())
    )
    other = set(during.statuses) - ALLOWED - {UNANSWERED}
    yield f"- answers: {told}: {'NOT only 200, 429, 503' if other else 'only 200, 429, 503'}"
    grown = memory.grown()
    yield (
        f"- memory, last quarter above first: {grown / MIB:,.0f} MiB, of which recent answers may "
        f"be {KEPT_BYTES / MIB:,.0f}: {met(grown <= KEPT_BYTES + FLAT * memory.seen[0])}"
    )
    p99, most = during.wait(0.99), before / capacity
    yield (
        f"- accepted: {during.rate:.0f}/s, {_waited(during, 200)} from sent; all {before} that may "
        f"wait or be encoded, at {capacity:.0f}/s: {1000 * most:.0f} ms: {met(p99 <= most)}"
    )
    yield f"- refused: {_waited(during, 429)}"


def _waited(answers: Answers, status: int) -> str:
    p50, p99 = (1000 * answers.wait(share, status) for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def _row(name: str, memory: int, answers: Answers) -> str:
    p50, p99 = (1000 * answers.latency(share) for share in (0.5, 0.99))
    return cells([name, f"{memory / MIB:,.0f}", f"{p50:.1f}", f"{p99:.1f}"])


def queue_of(server: Server) -> int:
    """Return how many requests may wait, as the server says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v1/info") as answer:
        return int(json.load(answer)["limits"]["queue"])
