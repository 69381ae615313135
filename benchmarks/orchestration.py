"""What a run costs beside its stages' work, and what resuming a complete one costs: seconds and
memory an item, with real processes, store, ledger and outputs, and stages that compute nothing.

    python -m benchmarks.orchestration [--items 10,1000,10000] [--folder DIR]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifacts.records.keys import item_key
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.schema import ChunkIndex, MediaIndex
from flows.core.console.display import Display
from flows.core.machine.launch import ENTRIES, DirectLauncher, Launcher
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from stages.frames.job import FramesItem
from stages.process.events import EventReporter
from stages.process.job import items_of
from stages.process.stage_process import Listener
from tests.support.builders.common import PENSTOCK, cells, heads

ROOT = Path(__file__).resolve().parents[1]
SIDE = 8
"""Height and width of every picture, in pixels."""
PACK_RECORDS = 64
"""Pictures stored together, as by the real frames stage."""
PAYLOAD = b"penstock" * 8


def frames(job: dict[str, Any], report: EventReporter) -> None:
    """Publish an index and one chunk of frames for each medium."""
    store, namespace = open_store(job["store"]), job["namespace"]
    frames, media = RecordSet(store, "frames", namespace), RecordSet(store, "media", namespace)
    chunk = ChunkIndex(index=0, start=0.0, end=0.0, times=(0.0,), height=SIDE, width=SIDE)
    index = MediaIndex(kind="image", height=SIDE, width=SIDE, duration=0.0, chunks=(chunk,))
    message = items_of(FramesItem, job["media"])
    report.total(len(message))
    for at in range(0, len(message), PACK_RECORDS):
        group = [medium.digest for medium in message[at : at + PACK_RECORDS]]
        keys = [item_key(namespace, digest, 0) for digest in group]
        frames.publish([Record(key=key, meta=asdict(chunk), payload=PAYLOAD) for key in keys])
        media.publish([Record(key=digest, meta=index.to_json()) for digest in group])
        for key in keys:
            report.answered(key)


def encode(job: dict[str, Any], report: EventReporter) -> None:
    """Publish features for each chunk, a pack a batch."""
    RecordSet(open_store(job["store"]), "frames", job["frames_namespace"])
    publish(job, "features", {"tokens": 4}, report)


def decode(job: dict[str, Any], report: EventReporter) -> None:
    """Publish a caption for each chunk, a pack a batch."""
    RecordSet(open_store(job["store"]), "features", job["features_namespace"])
    publish(
        job, "captions", {"caption": "a red square on grey", "tokens": 7, "ended": "stop"}, report
    )


def publish(job: dict[str, Any], kind: str, meta: dict[str, Any], report: EventReporter) -> None:
    record_set = RecordSet(open_store(job["store"]), kind, job["namespace"])
    for batch in job["batches"]:
        records = [Record(key=key, meta=meta, payload=PAYLOAD) for key, *_ in batch]
        for key in record_set.publish(records):
            report.answered(key, tokens=meta["tokens"])


def run_once(folder: Path) -> int:
    """Caption the pictures by the stages above; returns how many were."""
    config = CaptionConfig(
        sources=(str(folder / "pictures"),),
        recursive=True,
        model="demo",
        out=str(folder / "out"),
        store=str(folder / "store"),
    )
    own = {name: f"benchmarks.orchestration:{name}" for name in ("frames", "encode", "decode")}

    def launcher(listen: Listener) -> Launcher:
        return DirectLauncher(listen, {**ENTRIES, **own})

    return caption(config, Display(quiet=True), launcher).captions


def write_images(folder: Path, count: int) -> None:
    """So many small pictures of different content, a thousand to a folder."""
    from PIL import Image

    for number in range(count):
        file = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), number).save(file)


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds of a command without those of its children, and the most memory that it
    had resident, in MB."""
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return time.monotonic() - started, cpu, usage.ru_maxrss * 1024 / 1e6


def measure(folder: Path, items: int, card: Path) -> str:
    """Run once and again over so many pictures, and return a line of the table."""
    write_images(folder / "pictures", items)
    shutil.copytree(card / "store", folder / "store")
    wall, cpu, peak = measured(
        [sys.executable, "-m", "benchmarks.orchestration", "--run", str(folder)]
    )
    packs = len([*(folder / "store").rglob("*.pack")])
    where = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    what = ["caption", str(folder / "pictures"), "--recursive", "--model", "demo", "--quiet"]
    again = "{:.1f} s, {:.1f} s, {:.0f} MB".format(*measured([*PENSTOCK, *what, *where]))
    own = (f"{wall:.1f} s", f"{1000 * wall / items:.1f} ms", f"{cpu:.1f} s")
    return cells(
        [f"{items:,}", *own, f"{1000 * cpu / items:.1f} ms", f"{peak:.0f} MB", packs, again]
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--items", default="10,1000,10000")
    options.add_argument("--folder", type=Path, help="on the disk to be measured [a temporary one]")
    options.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.run:
        assert run_once(given.run) == len([*given.run.glob("pictures/*/*")])
        return
    names = "items | wall | per item | parent's CPU | per item | parent's memory | packs"
    print(heads(f"{names} | rerun: wall, CPU, memory"))
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        card = Path(name, "card")
        write_images(card / "pictures", 1)
        run_once(card)  # one item, so that the model's card is in the store already
        for items in map(int, given.items.split(",")):
            print(measure(Path(name, str(items)), items, card), flush=True)


if __name__ == "__main__":
    main()
