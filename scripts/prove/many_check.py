"""Shows what many GPUs make of one run: starts a Ray cluster with simulated GPUs on this machine,
runs partitions that wait as for a GPU, and compares times and bytes.

    python scripts/prove/many_check.py [--workers 1,2,4] [--seconds 120] [--partitions 8]
    python scripts/prove/many_check.py --deaths   # kills a worker, a node, the driver and the head
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import penstock_demo
from scripts.run.ray_nodes import Nodes, kill, ray_nodes, wait_until
from scripts.run.stage_processes import CheckFailed, checked, children

FASTEST = {1: 1.0, 2: 1.9, 4: 3.4}
"""Number of workers → how many times as fast as one they should be."""
END_SECONDS = 15.0
"""Within these no stage runs any more after the driver's death."""
RESUME_SECONDS = 2.0
"""Longest time that a finished partition may take on resume."""
PATIENCE = 3600.0


def media(folder: Path, files: int) -> Path:
    """Clips of the demo world, each of them another content."""
    clips = folder / "clips"
    clips.mkdir()
    for number, path in enumerate(sorted(penstock_demo.CLIPS.glob("*.mp4"))[:files]):
        shutil.copy(path, clips / f"{number:02d}{path.suffix}")
    return clips


def lines_of(out: Path) -> bytes:
    """Return the captions without the name of their folder."""
    return (out / "captions.jsonl").read_bytes().replace(str(out).encode(), b"")


def finish(nodes: Nodes, driver: "subprocess.Popen[bytes]", name: str = "driver") -> None:
    """Wait for a driver, which must succeed."""
    if driver.wait(PATIENCE) != 0:
        raise CheckFailed(f"the driver ended with {driver.returncode}\n{nodes.log(name)[-2000:]}")


def check_times(workers: list[int], partitions: int, seconds: float) -> None:
    """Time the same run with so many workers each; print how many times as fast as one they are."""
    times: dict[int, float] = {}
    made: set[bytes] = set()
    for count in workers:
        with ray_nodes(seconds) as nodes:
            clips = media(nodes.folder, partitions)
            nodes.start(gpus=count)
            began = time.monotonic()
            finish(nodes, nodes.drive(clips, out := nodes.folder / "out"))
            times[count] = time.monotonic() - began
            made.add(lines_of(out).replace(str(nodes.folder).encode(), b""))
        load = os.getloadavg()[0]
        print(
            f"{count} workers: {partitions} partitions of {seconds:.0f} s in {times[count]:.0f} s "
            f"(load {load:.1f})",
            flush=True,
        )
    faster = {count: times[1] / took for count, took in times.items()} if 1 in times else {}
    for count, ratio in faster.items():
        print(f"{count} workers: x {ratio:.2f} of one (goal x {FASTEST.get(count, count)})")
    print(f"bytes of captions.jsonl: {'the same' if len(made) == 1 else 'they differ'}")
    if len(made) != 1 or any(ratio < FASTEST.get(count, 0) for count, ratio in faster.items()):
        raise CheckFailed("bytes differ, or more workers are too slow")


def check_deaths(partitions: int, seconds: float) -> None:
    """Kill a worker, a node, the driver and the head; see that all is made, and nothing twice."""
    with ray_nodes(seconds) as nodes:
        clips, out = media(nodes.folder, partitions), nodes.folder / "out"
        head, victim = nodes.start(gpus=1), nodes.start(gpus=1)
        driver = nodes.drive(clips, out)
        await_partitions(nodes, out, 2)
        os.kill(nodes.tasks()[0], signal.SIGKILL)
        say("killed a worker in a partition")
        await_partitions(nodes, out, 3)
        nodes.kill(victim)
        say("killed a node in a partition")
        nodes.start(gpus=1)
        await_done(nodes, out, 3)
        kill_driver(nodes, driver)
        again = nodes.drive(clips, out, name="again")
        wait_until(lambda: bool(children(nodes.folder)), PATIENCE, lambda: nodes.log("again"))
        for name in list(nodes.nodes):
            nodes.kill(name)
        say(f"killed the head {head}; its driver ended with {again.wait(PATIENCE)}")
        say(nodes.log("again").splitlines()[-1])
        nodes.start(gpus=2)
        finish(nodes, nodes.drive(clips, out, name="third"), "third")
        check_outputs(nodes, clips, out, partitions)
        check_resume(nodes, clips, out, partitions)


def kill_driver(nodes: Nodes, driver: "subprocess.Popen[bytes]") -> None:
    """Kill a driver, and see that what it had started ends."""
    kill(driver)
    began = time.monotonic()
    wait_until(
        lambda: not children(nodes.folder) and not nodes.tasks(),
        END_SECONDS,
        lambda: f"{len(children(nodes.folder))} stages run {END_SECONDS} s after the driver",
    )
    say(f"killed the driver; no stage was left after {time.monotonic() - began:.1f} s")


def check_outputs(nodes: Nodes, clips: Path, out: Path, partitions: int) -> None:
    """See that each clip was captioned once, the last run made nothing, and bytes are those of the
    plain command."""
    records = [json.loads(path.read_text()) for path in out.glob("portions/*/run.json")]
    made = [record["stages"][-1]["items"] for record in records]
    last = [stage["items"] for stage in json.loads((out / "run.json").read_text())["stages"]]
    say(f"captions by the tries of partitions: {sorted(made)}; by the last run: {last[-1]}")
    plain = nodes.folder / "plain"
    words = [str(clips), "--model", "demo", "--out", str(plain), "--store", f"{plain}-store"]
    command = [sys.executable, "-P", "-m", "penstock", "caption", *words, "--batch-size", "1"]
    subprocess.run(command, check=True, env=nodes.environment(), capture_output=True)
    same = lines_of(out) == lines_of(plain)
    say(f"bytes of one machine: {'the same' if same else 'they differ'}")
    if not same or any(last) or sum(made) > partitions:
        raise CheckFailed("something was made twice, or otherwise than by one machine")


def check_resume(nodes: Nodes, clips: Path, out: Path, partitions: int) -> None:
    """See what finished partitions cost."""
    finish(nodes, nodes.drive(clips, out, name="resumed"), "resumed")
    each = record_of(out / "run.json")["partitions"]["seconds"] / partitions
    say(f"resumed: {each:.2f} s per finished partition")
    if each > RESUME_SECONDS:
        raise CheckFailed("finished partitions take too long")


def await_partitions(nodes: Nodes, out: Path, count: int) -> None:
    """Wait until so many tries of partitions have reached their last stage."""

    def reached() -> bool:
        return (
            sum(bool(record_of(path)["plan"]["model"]) for path in out.glob("portions/*/run.json"))
            >= count
        )

    wait_until(reached, PATIENCE, lambda: nodes.log("driver")[-2000:])
    time.sleep(5)


def await_done(nodes: Nodes, out: Path, count: int) -> None:
    """Wait until the driver has recorded so many finished partitions."""

    def done() -> bool:
        return int(record_of(out / "run.json").get("partitions", {}).get("done", 0)) >= count

    wait_until(done, PATIENCE, lambda: nodes.log("driver")[-2000:])


def record_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", flush=True)


def main() -> int:
    """0 when it is as fast as it should be, or all is there after the deaths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--deaths", action="store_true")
    given = parser.parse_args()

    def check() -> None:
        if given.deaths:
            check_deaths(given.partitions, given.seconds)
        else:
            workers = [int(count) for count in given.workers.split(",")]
            check_times(workers, given.partitions, given.seconds)

    return checked(check, "all as it should be")


if __name__ == "__main__":
    sys.exit(main())
