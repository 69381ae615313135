"""What a server is to be asked, and what it answered and when.

Latency counts from when a request was due, not from when a connection was free for it, so a slow
server is not asked less.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stages.process.environment import child_environment

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
    bodies: str
    """Folder of files `N.head` and `N.tail`; a number stands between both."""
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
    latencies: dict[int, list[float]]
    """Status → seconds from due to answered, in order of size."""
    waits: dict[int, list[float]]
    """Status → seconds from sent to answered, in order of size."""
    answered: int
    """Requests that got any answer, those of the first seconds among them."""
    cpu_seconds: float
    """Of the process that asked."""

    def latency(self, share: float, status: int = 200) -> float:
        """Seconds within which this share of the requests was answered; nan where none was."""
        return quantile(self.latencies.get(status, []), share)

    def wait(self, share: float, status: int = 200) -> float:
        """Seconds from sent to answered, likewise."""
        return quantile(self.waits.get(status, []), share)


def quantile(values: Sequence[float], share: float) -> float:
    """The least of ascending values that so many are not above; nan of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def ask(load: Load) -> Answers:
    """Send a load from a process of its own and wait for its answers."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._asking"],
        input=json.dumps(asdict(load)).encode(),
        env=child_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    told = json.loads(done.stdout)
    numbered = ("statuses", "latencies", "waits")
    for name in numbered:
        told[name] = {int(status): found for status, found in told[name].items()}
    return Answers(**told)
