"""What a run costs beside its stages' work: seconds and memory an item, and of a run with nothing
to do; with real processes, store, ledger and outputs, and stages that compute nothing.

    python benchmarks/orchestration.py [--items 10,1000,10000] [--waves 1] [--folder DIR]
        [--prefect]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import flows.planning.sizes
from benchmarks._common import PENSTOCK
from benchmarks._synthetic import SIDE, SyntheticLauncher
from flows.console.display import Display
from flows.options.commands import CaptionConfig
from flows.results.run_result import RunResult
from flows.running.run import caption

ROOT = Path(__file__).resolve().parents[1]


def write_images(folder: Path, count: int) -> None:
    """So many small pictures of different content, a thousand to a folder."""
    from PIL import Image

    for number in range(count):
        file = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), number).save(file)


def config_of(folder: Path) -> CaptionConfig:
    return CaptionConfig(
        sources=(str(folder / "pictures"),),
        recursive=True,
        model="demo",
        out=str(folder / "out"),
        store=str(folder / "store"),
    )


def measured(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """A command's wall and CPU seconds without those of its children, and the most memory it had
    resident, in bytes."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    seconds = time.monotonic() - started
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak": usage.ru_maxrss << 10}


def run_in_prefect(folder: Path) -> None:
    """The run as a flow, with a server of its own; prints how long its sequence took, which is all
    but the start and the end of server and flow."""
    flow: Any = import_module("flows.deployments.caption")
    plain = flow.caption

    def timed(*given: Any) -> RunResult:
        started = time.monotonic()
        try:
            result: RunResult = plain(*given)
            return result
        finally:
            (folder / "seconds").write_text(str(time.monotonic() - started))

    tasks: Any = import_module("flows.deployments.tasks")
    tasks.DirectLauncher = SyntheticLauncher
    flow.caption = timed
    flow.run_with_prefect(config_of(folder), Display(quiet=True))


def run_once(folder: Path, waves: int, items: int) -> None:
    """The run that `measured` measures, in a process of its own."""
    if waves > 1:
        from flows.job.prepare import prepare
        from flows.machine.launch import DirectLauncher

        job = prepare(config_of(folder), DirectLauncher(lambda *_: None))
        each = flows.planning.sizes.estimates(job)[0].bytes
        flows.planning.sizes.MAX_WAVE_BYTES = each * -(-items // waves)
    started = time.monotonic()
    result = caption(config_of(folder), Display(quiet=True), SyntheticLauncher)
    (folder / "seconds").write_text(str(time.monotonic() - started))
    assert result.captions == items, result


def describe_demo(folder: Path) -> None:
    """One item, so that the model's card is in the store already."""
    write_images(folder / "pictures", 1)
    caption(config_of(folder), Display(quiet=True), SyntheticLauncher)


def measure(folder: Path, items: int, waves: int, card: Path) -> dict[str, Any]:
    write_images(folder / "pictures", items)
    shutil.copytree(card / "store", folder / "store")
    own = [sys.executable, "-m", "benchmarks.orchestration", "--run", str(folder)]
    row = measured([*own, "--waves", str(waves), "--items", str(items)])
    record = json.loads((folder / "out" / "run.json").read_text())
    row["stages"] = sum(stage["seconds"] for stage in record["stages"])
    packs = [path.stat().st_size for path in (folder / "store").rglob("*.pack")]
    row["packs"], row["bytes"] = len(packs), sum(packs)
    where = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    what = ["caption", str(folder / "pictures"), "--recursive", "--model", "demo", "--quiet"]
    row["rerun"] = measured([*PENSTOCK, *what, *where])
    return row


def compare(folder: Path, items: int, card: Path) -> None:
    """The seconds of the same sequence without Prefect and with it, a store each, three times in
    turn."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(3):
        for prefect in seconds:
            place = folder / f"{number}-{prefect}"
            write_images(place / "pictures", items)
            shutil.copytree(card / "store", place / "store")
            own = [sys.executable, "-m", "benchmarks.orchestration", "--run", str(place)]
            more = ["--prefect"] if prefect else ["--items", str(items)]
            measured([*own, *more], PREFECT_HOME=str(folder / "prefect"))
            seconds[prefect].append(float((place / "seconds").read_text()))
    plain, inside = (statistics.median(seconds[prefect]) for prefect in (False, True))
    print(f"{items:7d} items  sequence {plain:.2f} s plain, {inside:.2f} s inside a flow")


def tell(items: int, waves: int, row: dict[str, Any]) -> None:
    again = row["rerun"]
    print(
        f"{items:7d} items {waves:3d} waves  {row['seconds']:7.1f} s wall "
        f"{1000 * row['seconds'] / items:8.2f} ms/item   parent {row['cpu']:6.1f} s cpu "
        f"{1000 * row['cpu'] / items:8.3f} ms/item  peak {row['peak'] / 1e6:6.0f} MB   "
        f"stages {row['stages']:6.1f} s   {row['packs']} packs {row['bytes'] / 1e6:.0f} MB   "
        f"rerun {again['seconds']:.2f} s wall {again['cpu']:.2f} s cpu "
        f"{again['peak'] / 1e6:.0f} MB",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--items", default="10,1000,10000")
    options.add_argument("--waves", type=int, default=1)
    options.add_argument("--folder", type=Path, help="on the disk to be measured [a temporary one]")
    options.add_argument("--prefect", action="store_true", help="once more inside Prefect")
    options.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    counts = [int(count) for count in given.items.split(",")]
    if given.run and given.prefect:
        run_in_prefect(given.run)
        return
    if given.run:
        run_once(given.run, given.waves, counts[0])
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        card = Path(name) / "card"
        describe_demo(card)
        for items in counts:
            tell(items, given.waves, measure(Path(name) / str(items), items, given.waves, card))
            if given.prefect:
                compare(Path(name) / f"{items}-compared", items, card)


if __name__ == "__main__":
    main()
