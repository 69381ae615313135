"""Cuts chunks out of videos in a separate process. Runs no model."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import CannotFit, Killed, StageDied
from artifacts.regular_files import refuse_links
from artifacts.samples import Media, media_suffix
from artifacts.shards import SHARD_BYTES
from artifacts.store import fault_of
from flows.job.prepare import Job
from flows.machine.launch import MAX_RESTARTS, Launcher, StageCall
from flows.results.sample_sources import SampleSource
from stages.frames.job import CutItem, CutJob
from stages.process.exit_diagnosis import is_crash

OnProgress = Callable[[str, int, int], None]
"""Callback with the name of a step, its total, and how many are done."""


def batches(items: Sequence[SampleSource]) -> Iterator[list[SampleSource]]:
    """Yield the items in batches of about SHARD_BYTES of videos to cut. All chunks of a video are
    in one batch."""
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

    def __init__(
        self, job: Job, launcher: Launcher, on_progress: OnProgress, temporary: Path
    ) -> None:
        self._log = job.out / "logs" / "cut.log"
        self._launcher = launcher
        self._on_progress = on_progress
        self._folder = temporary / "cuts"
        self.refused: list[str] = []
        """Names of files that could not be cut, each with the reason."""
        self.why: dict[str, str] = {}
        """Key of each sample that could not be cut → why."""
        self._kills = 0
        """Consecutive times that the process was killed before it cut anything."""

    def __call__(self, items: Sequence[SampleSource]) -> dict[str, Media]:
        """Cut the items and return the key of each sample → its media."""
        found: dict[str, Media] = {}
        remaining = list(items)
        while remaining:
            self._on_progress("cut", len(items), len(items) - len(remaining))
            results = self._run(remaining)
            for item in remaining:
                result = results.get(item.sample.key, {})
                if "file" in result:
                    path = self._folder / result["file"]
                    found[item.sample.key] = Media(
                        path=path, suffix=media_suffix(path.name), start=result["start"]
                    )
                elif "error" in result:
                    self.refused.append(f"{item.file.name}: {result['error']}")
                    self.why[item.sample.key] = result["error"]
            remaining = [item for item in remaining if item.sample.key not in results]
        return found

    def _run(self, items: Sequence[SampleSource]) -> dict[str, Any]:
        """Return the result of each item. If the process died, that includes an error for the file
        that it was cutting."""
        try:
            refuse_links(self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise fault_of(error, self._folder) from error
        cuts = [
            CutItem(
                str(item.file),
                item.sample.key,
                item.sample.row.start,
                item.sample.row.end,
                item.stamp,
            )
            for item in items
        ]
        call = StageCall(
            name="cut",
            job=CutJob(folder=str(self._folder), cuts=cuts),
            device="cpu",
            log=self._log,
        )
        running = self._launcher.start(call)
        try:
            results = running.wait().notes
            return {i.sample.key: results[i.sample.key] for i in items}
        except (StageDied, CannotFit) as error:
            results = dict(running.outcome.notes)
            first = next((item for item in items if item.sample.key not in results), None)
            if first is None or not (isinstance(error, CannotFit) or is_crash(error)):
                raise
            for item in items:
                if item.file == first.file:
                    results.setdefault(item.sample.key, {"error": error.message})
            return results
        except Killed:
            results = dict(running.outcome.notes)
            made = any(item.sample.key in results for item in items)
            self._kills = 0 if made else self._kills + 1
            if self._kills > MAX_RESTARTS:
                raise
            return results
        except BaseException:
            running.stop()
            raise
