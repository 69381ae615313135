"""Penstock's server against itself with one request at a time, LitServe and plain FastAPI, over
real HTTP, with an encoder that takes a card's time; then ten times too much load. Prints tables.

Requests come as strangers come (Poisson), whether or not others were answered; latency counts from
when a request was due. Every picture is another one, so no store answers. All servers have the same
pictures, the same encoder and the same two cores, which the asking process shares; they take turns,
a round each, and a line is the median of rounds.

    python -m benchmarks.serve [--only penstock,one,litserve,fastapi] [--seconds 8] [--rounds 3]
        [--pictures small,large] [--overload 60] [--quick]
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import _overload
from benchmarks._card_time import PATH, PICTURE_SECONDS, SIDE, START_SECONDS
from benchmarks._common import MIB, cells, heads, in_fresh_process
from benchmarks._load import UNANSWERED, Answers, ask
from benchmarks._served import SIZES, Server, Way, serving, write_bodies
from benchmarks._tower_shapes import QUICK, write_clip
from flows.machine.cpu import cpu_line

LIGHT = 20.0
"""Requests a second."""
HEAVY = {"small": 800.0, "large": 400.0}
"""Pictures → requests a second that are well above what any server here answers."""
BATCH = 32
NAMES = {
    "penstock": f"Penstock, batches up to {BATCH}",
    "one": "Penstock, one at a time",
    "litserve": f"LitServe, batches up to {BATCH}",
    "fastapi": "FastAPI, one at a time on a thread",
}
HEADS = (
    "pictures | asked/s | server | answered/s | x one at a time | p50 ms | p90 | p99 | 429"
    " | never answered | ms CPU a request | MiB"
)


class Trial(NamedTuple):
    """One load on one server."""

    size: str
    asked: float
    """Requests a second."""
    name: str
    answers: Answers
    cpu_seconds: float
    """Of all processes of the server, a request that it answered."""
    memory: int
    """Bytes."""

    @property
    def what(self) -> tuple[str, float, str]:
        return self[:3]


def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(arguments)
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-serve-") as name:
        folder = Path(name)
        write_bodies(folder)
        in_fresh_process(write_model, folder / "model")
        trials = list(compared(given, folder))
        if trials:
            print("\n".join([heads(HEADS), *lines(trials), ""]), flush=True)
        if given.overload:
            way = way_of("penstock", folder, given.slower)
            print("\n".join(_overload.lines(way, BATCH, folder, given.overload)))


def write_model(folder: Path) -> None:
    """Write a small CLIP that sees pictures of the size that the stand-in does: by that they are
    decoded."""
    write_clip(folder, QUICK._replace(side=SIDE, patch=SIDE // 7))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default=",".join(NAMES), help="servers; none: overload alone")
    options.add_argument("--pictures", default=",".join(SIZES))
    options.add_argument("--seconds", type=float, default=8.0, help="of each load")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--overload", type=float, default=60.0, help="seconds; 0: none")
    options.add_argument("--slower", type=float, default=4.0, help="times a card's time, overload")
    options.add_argument("--quick", action="store_true", help="does it run at all?")
    given = options.parse_args(arguments)
    if given.quick:
        given.pictures, given.rounds = "small", 1
        given.seconds, given.overload = 4.0, min(given.overload, 4.0)
    given.only = "" if given.only == "none" else given.only
    if unknown := [name for name in given.only.split(",") if name and name not in NAMES]:
        options.error(f"--only {unknown[0]} is not known; there are {', '.join(NAMES)}")
    return given


def way_of(name: str, folder: Path, slower: float = 1.0) -> Way:
    """Return how a server is started with an encoder, and asked; in the folder lies a model."""
    if name in ("penstock", "one"):
        batch = ("--max-batch", f"{BATCH if name == 'penstock' else 1}", "--tiles", "off")
        own = ("--slower", f"{slower}", "--model", str(folder / "model"))
        command = ("benchmarks._penstock", *own, *batch)
        return Way(name=NAMES[name], command=command, path="/v1/embed")
    alone = (f"benchmarks._{name}",)
    return Way(name=NAMES[name], command=alone, path=PATH, json=name == "litserve")


def compared(given: argparse.Namespace, folder: Path) -> Iterator[Trial]:
    """Ask every server, one after the other, as many rounds as are wanted."""
    for number in range(given.rounds):
        for name in filter(None, given.only.split(",")):
            with serving(way_of(name, folder), folder, folder / f"{name}.log") as server:
                for size in given.pictures.split(","):
                    for rate in (LIGHT, HEAVY[size]):
                        trial = tried(server, (size, rate, name), given.seconds)
                        told = f"round {number + 1}: {size} {rate:.0f}/s {name}"
                        print(f"{told} {trial.answers.rate:.0f}/s", file=sys.stderr)
                        yield trial


def tried(server: Server, what: tuple[str, float, str], seconds: float) -> Trial:
    load = server.load(what[0], what[1], seconds)
    before = server.cpu_seconds()
    answers = ask(load)
    used = (server.cpu_seconds() - before) / max(1, answers.answered)
    return Trial(*what, answers=answers, cpu_seconds=used, memory=server.memory())


def lines(trials: Sequence[Trial]) -> Iterator[str]:
    """Return the table, in Markdown."""
    for what in dict.fromkeys(trial.what for trial in trials):
        size, asked, name = what
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
        times = times_one(trials, what)
        answered = middle(trial.answers.rate for trial in found)
        more = "" if math.isnan(times) else f"{times:.1f}"
        used = middle((1000 * trial.cpu_seconds for trial in found), 1)
        memory = middle(trial.memory / MIB for trial in found)
        said = ("x".join(map(str, SIZES[size])), f"{asked:.0f}", NAMES[name], answered, more)
        yield cells([*said, *latency, refused, lost, used, memory])


def times_one(trials: Sequence[Trial], what: tuple[str, float, str]) -> float:
    """Return the median, over rounds, of the throughput in relation to one request at a time."""
    one = [trial.answers.rate for trial in trials if trial.what == (*what[:2], "one")]
    own = [trial.answers.rate for trial in trials if trial.what == what]
    pairs = [a / b for a, b in zip(own, one, strict=False) if b]
    return median(pairs) if pairs and what[1] != LIGHT else math.nan


def machine() -> str:
    """Return one line of what all of them have."""
    cores = len(os.sched_getaffinity(0))
    card = f"{1000 * START_SECONDS:.0f} ms a batch and {1000 * PICTURE_SECONDS:.1f} a picture"
    name = cpu_line("model name")
    return f"{name}, {cores} cores for servers and asking together; a card's time: {card}"


if __name__ == "__main__":
    main()
