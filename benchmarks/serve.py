"""Penstock's server against itself with one request at a time, LitServe and plain FastAPI, over
real HTTP: with an encoder that takes a card's time, and with the demo's tower on the CPU; then ten
times too much load. Prints tables.

Requests come as strangers come (Poisson), whether or not others were answered; latency counts from
when a request was due. Every picture is another one, so no store answers. All servers have the same
pictures, the same encoder and the same two cores, which the asking process shares; they take turns,
a round each, and a line is the median of rounds.

    python -m benchmarks.serve [--only penstock,one,litserve,fastapi] [--seconds 8] [--rounds 3]
        [--towers card,demo] [--pictures small,large] [--overload 60] [--quick]
"""

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import penstock_demo
from benchmarks import _overload
from benchmarks._card_time import PICTURE_SECONDS, SIDE, START_SECONDS, pixels_of, seconds
from benchmarks._goals import met
from benchmarks._load import UNANSWERED, Answers, ask
from benchmarks._served import SIZES, Server, Way, pictures, serving, write_bodies
from flows.job.cpu import cpu_line

LIGHT = 20.0
"""Requests a second."""
HEAVY = {("card", "small"): 800.0, ("card", "large"): 400.0, ("demo", "small"): 800.0}
"""Encoder and pictures → requests a second that are well above what any server here answers."""
BATCH = 32
GOAL_TIMES, GOAL_SECONDS = 5.0, 0.010
MIB = 1 << 20
NAMES = {
    "penstock": f"Penstock, batches up to {BATCH}",
    "one": "Penstock, one at a time",
    "litserve": f"LitServe, batches up to {BATCH}",
    "fastapi": "FastAPI, one at a time on a thread",
}
LEFT = ("encoder", "pictures", "asked/s", "server", "answered/s", "x one at a time")
HEADS = (*LEFT, "p50 ms", "p90", "p99", "429", "never answered", "ms CPU a request", "MiB")


class Trial(NamedTuple):
    """One load on one server."""

    tower: str
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
    def what(self) -> tuple[str, str, float, str]:
        return self[:4]


def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(arguments)
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-serve-") as name:
        folder = Path(name)
        write_bodies(folder)
        writing = get_context("spawn").Process(target=write_model, args=(folder / "model",))
        writing.start()
        writing.join()
        trials = list(compared(given, folder))
        if trials:
            print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
            print(
                "\n".join(lines(trials)) + "\n\n" + "\n".join(verdicts(trials)) + "\n", flush=True
            )
        if given.overload:
            way = way_of("penstock", "card", folder, given.slower)
            print("\n".join(_overload.lines(way, BATCH, folder, given.overload)))


def write_model(folder: Path) -> None:
    """Write a small CLIP that sees pictures of the size that the stand-in does: by that they are
    decoded."""
    from benchmarks._tower_shapes import QUICK, vision_sizes
    from tests.support.dual_encoders import save_clip

    size = QUICK._replace(side=SIDE, patch=SIDE // 7)
    save_clip(folder, None, None, **vision_sizes(size))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default=",".join(NAMES), help="servers; none: overload alone")
    options.add_argument("--towers", default="card,demo")
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


def way_of(name: str, tower: str, folder: Path, slower: float = 1.0) -> Way:
    """Return how a server is started with an encoder, and asked; in the folder lies a model."""
    if name in ("penstock", "one"):
        shape = ("--slower", f"{slower}", "--model", str(folder / "model"))
        own = shape if tower == "card" else ("--real",)
        batch = ("--max-batch", f"{BATCH if name == 'penstock' else 1}")
        command = ("benchmarks._penstock", *own, *batch, "--tiles", "off")
        return Way(name=NAMES[name], command=command, path="/v1/embed")
    model = ("--tower", str(penstock_demo.DUAL_CHECKPOINT)) if tower == "demo" else ()
    command = ("benchmarks._rivals", name, *model)
    return Way(name=NAMES[name], command=command, path="/predict", json=name == "litserve")


def compared(given: argparse.Namespace, folder: Path) -> Iterator[Trial]:
    """Ask every server, one after the other, as many rounds as are wanted."""
    for number in range(given.rounds):
        for tower in given.towers.split(","):
            for name in filter(None, given.only.split(",")):
                way = way_of(name, tower, folder)
                with serving(way, folder, folder / f"{name}-{tower}.log") as server:
                    for size in given.pictures.split(","):
                        if (tower, size) in HEAVY:
                            for rate in (LIGHT, HEAVY[tower, size]):
                                trial = tried(server, (tower, size, rate, name), given.seconds)
                                told = f"round {number + 1}: {tower} {size} {rate:.0f}/s {name}"
                                print(f"{told} {trial.answers.rate:.0f}/s", file=sys.stderr)
                                yield trial


def tried(server: Server, what: tuple[str, str, float, str], seconds: float) -> Trial:
    load = server.load(what[1], what[2], seconds)
    before = server.cpu_seconds()
    answers = ask(load)
    used = (server.cpu_seconds() - before) / max(1, answers.answered)
    return Trial(*what, answers=answers, cpu_seconds=used, memory=server.memory())


def lines(trials: Sequence[Trial]) -> Iterator[str]:
    """Return the table, in Markdown."""
    for what in dict.fromkeys(trial.what for trial in trials):
        tower, size, asked, name = what
        found = [trial for trial in trials if trial.what == what]

        def middle(values: Iterator[float], figures: int = 0) -> str:
            value = median(values)
            return "-" if math.isnan(value) else f"{value:,.{figures}f}"

        latency = [
            middle((1000 * trial.answers.latency(share) for trial in found), 1)
            for share in (0.5, 0.9, 0.99)
        ]
        times = times_one(trials, what)
        yield row(
            "a card's time" if tower == "card" else "the demo's tower, CPU",
            "x".join(map(str, SIZES[size])),
            f"{asked:.0f}",
            NAMES[name],
            middle(trial.answers.rate for trial in found),
            "" if math.isnan(times) else f"{times:.1f}",
            *latency,
            middle(trial.answers.statuses.get(429, 0) for trial in found),
            middle(trial.answers.statuses.get(UNANSWERED, 0) for trial in found),
            middle((1000 * trial.cpu_seconds for trial in found), 1),
            middle(trial.memory / MIB for trial in found),
        )


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def times_one(trials: Sequence[Trial], what: tuple[str, str, float, str]) -> float:
    """Return the median, over rounds, of the throughput in relation to one request at a time."""
    one = [trial.answers.rate for trial in trials if trial.what == (*what[:3], "one")]
    own = [trial.answers.rate for trial in trials if trial.what == what]
    pairs = [a / b for a, b in zip(own, one, strict=False) if b]
    return median(pairs) if pairs and what[2] != LIGHT else math.nan


def verdicts(trials: Sequence[Trial]) -> Iterator[str]:
    """Say whether the goals are met with pictures of each size."""
    for size in dict.fromkeys(trial.size for trial in trials):
        what = ("card", size, HEAVY.get(("card", size), 0.0), "penstock")
        times = times_one(trials, what)
        if not math.isnan(times):
            goal = f"at saturation >= {GOAL_TIMES:.0f} x one at a time"
            yield f'- {size}: goal "{goal}": {met(times >= GOAL_TIMES)}, {times:.1f}'
        light = [
            trial.answers.latency(0.5)
            for trial in trials
            if trial.what == ("card", size, LIGHT, "penstock")
        ]
        if light:
            decoding = decode_seconds(size)
            most = seconds(1) + decoding + GOAL_SECONDS
            held = met(median(light) <= most)
            goal = f"p50 at {LIGHT:.0f}/s <= encoder + decoding + 10 ms"
            spent = f"{1000 * median(light):.1f} of {1000 * most:.1f} ms"
            yield f'- {size}: goal "{goal}": {held}, {spent} (decoding {1000 * decoding:.1f})'


def decode_seconds(size: str) -> float:
    """Return how long one picture takes to decode here, alone, in the median."""

    def timed(picture: bytes) -> float:
        started = time.perf_counter()
        pixels_of(picture)
        return time.perf_counter() - started

    return median(timed(picture) for picture in [*pictures(size)] * 3)


def machine() -> str:
    """Return one line of what all of them have."""
    cores = len(os.sched_getaffinity(0))
    card = f"{1000 * START_SECONDS:.0f} ms a batch and {1000 * PICTURE_SECONDS:.1f} a picture"
    name = cpu_line("model name")
    return f"{name}, {cores} cores for servers and asking together; a card's time: {card}"


if __name__ == "__main__":
    main()
