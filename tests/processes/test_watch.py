"""`penstock watch` over a folder that grows, through kills and a disk that goes and comes."""

import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
        options = ("--model", "demo", "--max-new-tokens", "4", "--store", str(self.store))
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("burst", "seconds"), [(3, 10), pytest.param(125, 60, marks=pytest.mark.slow)]
)
def test_watch_captions_every_file_once(tmp_path: Path, burst: int, seconds: float) -> None:
    folder = Folder(tmp_path)
    with odd_disk(folder.disk, Kind()) as disk:
        with folder.watch(signal.SIGKILL):
            folder.burst(disk, burst)
            grown = growing(disk / "growing.png", seconds)
            time.sleep(random.uniform(2, 6))
        with folder.watch(signal.SIGTERM):
            folder.burst(disk, burst)
            time.sleep(random.uniform(2, 6))
        with folder.watch(signal.SIGKILL):
            folder.await_rows(2 * burst)
            grown()
            size = (disk / "growing.png").stat().st_size
    with folder.watch(signal.SIGINT) as watch:  # the disk is away
        time.sleep(2)
        with odd_disk(folder.disk, Kind()) as disk:
            folder.burst(disk, burst)
            folder.await_rows(3 * burst + 1)
        time.sleep(2)
        assert len(folder.rows()) == 3 * burst + 1
        with odd_disk(folder.disk, Kind()) as disk:
            folder.burst(disk, burst)
            folder.await_rows(4 * burst + 1)
    assert watch.returncode == 4
    paths = Counter(row["media_path"] for row in folder.rows())
    assert paths == dict.fromkeys([*(f"{n:04}.png" for n in range(4 * burst)), "growing.png"], 1)
    assert folder.captioned() == len(paths)
    sizes = {row["media_path"]: row["bytes"] for row in folder.rows("media")}
    assert sizes["growing.png"] == size
