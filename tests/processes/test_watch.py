"""`penstock watch` over a folder that grows, through kills and a disk that goes and comes."""

import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.records.packs import RecordSet, stored_namespaces
from artifacts.records.store import open_store
from tests.support.commands import begun
from tests.support.odd_disk import Kind, odd_disk
from tests.support.pipeline import PENSTOCK

MIN_AGE = 2
"""Seconds."""


class Folder:
    """A folder of pictures that the watch captions, and what it wrote."""

    def __init__(self, root: Path) -> None:
        self.disk, self.out, self.store = root / "disk", root / "out", root / "store"
        self.log = root / "watch.log"
        self.written = 0

    def burst(self, folder: Path, number: int) -> None:
        """Write so many pictures, no two alike."""
        for _ in range(number):
            colour = (self.written % 256, self.written // 256, 99)
            Image.new("RGB", (32, 32), colour).save(folder / f"{self.written:04}.png")
            self.written += 1

    @contextmanager
    def watch(self, end: int) -> Iterator["subprocess.Popen[str]"]:
        """Watch the folder until the block ends, then send the signal `end`."""
        hook = "http://me:secret@127.0.0.1:9/hook"  # nobody listens
        options = ["--model", "demo", "--max-new-tokens", "4", "--store", str(self.store)]
        options += ["--notify", hook]
        words = ("caption", str(self.disk / "disk"), "--out", str(self.out), *options)
        times = ("--every", "0.5s", "--min-age", f"{MIN_AGE}s")
        with self.log.open("a") as log:
            watch = begun([*PENSTOCK, "watch", *times, "--", *words], stdout=log, stderr=log)
            try:
                yield watch
                assert watch.poll() is None, self.log.read_text()
            finally:
                watch.send_signal(end)
                watch.wait(60)

    def rows(self, name: str = "captions") -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            text = (self.out / f"{name}.jsonl").read_text()
            return [json.loads(line) for line in text.splitlines()]
        return []

    def await_rows(self, number: int) -> None:
        deadline = time.monotonic() + 150
        while len(self.rows()) < number:
            assert time.monotonic() < deadline, (len(self.rows()), self.log.read_text())
            time.sleep(0.2)

    def captioned(self) -> int:
        """Return the number of captions in the store: one per content that was captioned."""
        store = open_store(str(self.store))
        spaces = stored_namespaces(store, "captions")
        return sum(len(RecordSet(store, "captions", space)) for space in spaces)

    def decoded(self) -> int:
        """Return the number of captions that all runs into the folder have made."""
        history = json.loads((self.out / "run.json").read_text())["history"]
        return sum(run["items"].get("decode", 0) for run in history)


def growing(path: Path, seconds: float) -> Callable[[], None]:
    """Write to a picture for some time, and return what waits for its end."""

    def grow() -> None:
        Image.new("RGB", (64, 64), "red").save(path)
        end = time.monotonic() + seconds
        with path.open("ab", buffering=0) as file:
            while time.monotonic() < end:
                file.write(random.randbytes(100))
                time.sleep(MIN_AGE / 8)

    thread = threading.Thread(target=grow)
    thread.start()
    return thread.join


@contextmanager
def renamed_disk(folder: Path) -> Iterator[Path]:
    """Put what was in a folder before into its place until the block ends, as a disk is mounted
    over an empty folder."""
    place, behind = folder / "disk", folder / "behind"
    for path in (place, behind):
        path.mkdir(parents=True, exist_ok=True)
    place.rmdir()
    behind.rename(place)
    yield place
    place.rename(behind)
    place.mkdir()


def mounted_disk(folder: Path) -> AbstractContextManager[Path]:
    return odd_disk(folder, Kind())


DISKS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "mounted": mounted_disk,
    "renamed": renamed_disk,
}
"""How a disk comes, and goes at the end of the block."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "burst", "seconds", "kills"),
    [
        ("renamed", 3, 2, 0),
        *(pytest.param(kind, 125, 60, 2, marks=pytest.mark.slow) for kind in DISKS),
    ],
)
def test_watch_captions_every_file_once(
    tmp_path: Path, kind: str, burst: int, seconds: float, kills: int
) -> None:
    """`kills`: number of watches that are killed at random moments, before one that is killed
    after it has captioned."""
    folder, comes = Folder(tmp_path), DISKS[kind]
    with comes(folder.disk) as disk:
        grown = growing(disk / "growing.png", seconds)
        for _ in range(kills):
            with folder.watch(signal.SIGKILL):
                folder.burst(disk, burst)
                time.sleep(random.uniform(1, 4))
        with folder.watch(signal.SIGKILL):
            folder.burst(disk, burst)
            folder.await_rows((kills + 1) * burst)
            grown()
            size = (disk / "growing.png").stat().st_size
    with folder.watch(signal.SIGINT) as watch:  # the disk is away
        time.sleep(1)
        for bursts in (kills + 2, kills + 3):
            with comes(folder.disk) as disk:
                folder.burst(disk, burst)
                folder.await_rows(bursts * burst + 1)
            time.sleep(1)
            assert len(folder.rows()) == bursts * burst + 1
    assert watch.returncode == 4
    log = folder.log.read_text()
    assert "--notify http://…@127.0.0.1:9/hook" in log and "secret" not in log
    assert "warning: --notify: " in log
    paths = Counter(row["media_path"] for row in folder.rows())
    pictures = [f"{number:04}.png" for number in range(bursts * burst)]
    assert paths == dict.fromkeys([*pictures, "growing.png"], 1)
    assert folder.captioned() == folder.decoded() == len(paths)
    sizes = {row["media_path"]: row["bytes"] for row in folder.rows("media")}
    assert sizes["growing.png"] == size
