"""Cuts chunks out of videos in a separate process. Runs no model."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import CannotFit, Killed, StageDied
from artifacts.samples import Media, media_suffix
from artifacts.shards import SHARD_BYTES
from artifacts.store import fault_of
from flows.job.prepare import Job
from flows.machine.launch import KILLS, Launcher, StageCall
from flows.results.sample_sources import SampleSource
from stages.process.exit_diagnosis import is_crash

Tell = Callable[[str, int, int], None]
"""Hears what begins, how many there are of it, and how many of them are done."""


def batches(items: Sequence[SampleSource]) -> Iterator[list[SampleSource]]:
    """Yield the items in stretches of about a shard's bytes to be cut; a video is in one of
    them."""
    batch: list[SampleSource] = []
    filled = 0
    for item in items:
        if not item.whole and (not batch or batch[-1].file != item.file):
            if filled > SHARD_BYTES:
                yield batch
                batch, filled = [], 0
            filled += os.path.getsize(item.file) if item.file.exists() else 0
        batch.append(item)
    if batch:
        yield batch


class Cutter:
    """Cuts chunks of videos in a separate process, because a damaged file may crash it."""

    def __init__(self, job: Job, launcher: Launcher, tell: Tell, aside: Path) -> None:
        self._log = job.out / "logs" / "cut.log"
        self._launcher = launcher
        self._tell = tell
        self._folder = aside / "cuts"
        self.refused: list[str] = []
        """Names of files, each with why nothing could be cut out of it."""
        self.why: dict[str, str] = {}
        """Key of what could not be cut out → why."""
        self._kills = 0
        """Number of times in a row that it was killed before it had cut anything out."""

    def __call__(self, items: Sequence[SampleSource]) -> dict[str, Media]:
        """Cut the items and return the key of each sample → what was cut out for it."""
        found: dict[str, Media] = {}
        left = list(items)
        while left:
            self._tell("cut", len(items), len(items) - len(left))
            told = self._run(left)
            for item in left:
                said = told.get(item.sample.key, {})
                if "file" in said:
                    path = self._folder / said["file"]
                    found[item.sample.key] = Media(
                        path=path, suffix=media_suffix(path.name), start=said["start"]
                    )
                elif "error" in said:
                    self.refused.append(f"{item.file.name}: {said['error']}")
                    self.why[item.sample.key] = said["error"]
            left = [item for item in left if item.sample.key not in told]
        return found

    def _run(self, items: Sequence[SampleSource]) -> dict[str, Any]:
        """Return what the process told of each item. After its death that includes the file that it
        died of."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise fault_of(error, self._folder) from error
        cuts = [
            {
                "path": str(item.file),
                "name": item.sample.key,
                "start": item.sample.row.start,
                "end": item.sample.row.end,
                "stamp": item.stamp,
            }
            for item in items
        ]
        call = StageCall(
            name="cut",
            arguments={"folder": str(self._folder), "cuts": cuts},
            device="cpu",
            log=self._log,
        )
        running = self._launcher.start(call)
        try:
            told = running.wait().notes
            return {i.sample.key: told[i.sample.key] for i in items}
        except (StageDied, CannotFit) as error:
            told = dict(running.outcome.notes)
            first = next((item for item in items if item.sample.key not in told), None)
            if first is None or not (isinstance(error, CannotFit) or is_crash(error)):
                raise
            for item in items:
                if item.file == first.file:
                    told.setdefault(item.sample.key, {"error": error.message})
            return told
        except Killed:
            told = dict(running.outcome.notes)
            made = any(item.sample.key in told for item in items)
            self._kills = 0 if made else self._kills + 1
            if self._kills > KILLS:
                raise
            return told
        except BaseException:
            running.stop()
            raise
