"""Cuts chunks out of videos in separate processes. Runs no model."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import CannotFit, Killed, StageDied
from artifacts.regular_files import refuse_links
from artifacts.samples import Media, media_suffix
from artifacts.shards import SHARD_BYTES
from artifacts.store import fault_of
from flows.job.prepare import Job
from flows.machine.launch import MAX_RESTARTS, Launcher, StageCall, StageHandle
from flows.options.formats import EXACT
from flows.results.marker import media_mode
from flows.results.sample_sources import SampleSource
from stages.frames.job import CutItem, CutJob
from stages.process.cgroup import cores, host_free_bytes
from stages.process.exit_diagnosis import is_crash

PROCESS_BYTES = 1 << 30
"""Memory of a process that encodes 4K video."""
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
    """Cuts chunks of videos in separate processes, because a damaged file may crash one."""

    def __init__(
        self, job: Job, launcher: Launcher, on_progress: OnProgress, temporary: Path
    ) -> None:
        self._log = job.out / "logs" / "cut.log"
        self._launcher = launcher
        self._on_progress = on_progress
        self._folder = temporary / "cuts"
        self.refused: list[str] = []
        """Names of files that could not be cut, each with the reason."""
        self.differs: dict[str, str] = {}
        """Key of each whole file's clip → why a reader may show it otherwise than the model saw it;
        empty if none does."""
        self._copied: Collection[str] = ()
        self.why: dict[str, str] = {}
        """Key of each clip that could not be cut → why."""
        self._kills = 0
        """Consecutive times that a process was killed before it cut anything."""
        self._deinterlace = job.sampling.deinterlace
        self.exact = media_mode(job.out, job.config) == EXACT
        """Whether clips are exact, and whole files copied where readers show them otherwise."""
        fitting = host_free_bytes() // PROCESS_BYTES
        self._processes = max(1, min(cores() - 1, fitting)) if self.exact else 1

    def __call__(
        self, items: Sequence[SampleSource], copied: Collection[str] = ()
    ) -> dict[str, Media]:
        """Cut the items and return the key of each clip → its media. Whole files that every
        reader shows as the model saw them are not cut, except those `copied`, by their clips."""
        self._copied = copied
        results = self._finished(items)
        while remaining := [item for item in items if item.sample.clip not in results]:
            self._on_progress("cut", len(items), len(items) - len(remaining))
            results |= self._run(remaining)
        found: dict[str, Media] = {}
        for item in items:
            key = item.sample.clip
            result = results[key]
            if "plain" in result:
                self.differs[key] = result.get("why", "")
            if "file" in result:
                path = self._folder / result["file"]
                found[key] = Media(
                    path=path,
                    suffix=media_suffix(path.name),
                    start=result["start"],
                    clip=key,
                )
            elif "error" in result:
                self.refused.append(f"{item.file.name}: {result['error']}")
                self.why[key] = result["error"]
        return found

    def clear(self) -> None:
        """Delete what is left of the cuts, when all of them are where they belong."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)

    def _finished(self, items: Sequence[SampleSource]) -> dict[str, Any]:
        """Return the results of exact clips that a killed run has finished."""
        keys = [item.sample.clip for item in items if self.exact and not item.whole]
        names = {key: f"{key}.mp4" for key in keys}
        return {
            key: {"file": name, "start": 0.0}
            for key, name in names.items()
            if (self._folder / name).is_file()
        }

    def _run(self, items: Sequence[SampleSource]) -> dict[str, Any]:
        """Cut items in several processes, and return the results that they have. If a process died,
        that includes an error for the file that it was cutting."""
        try:
            refuse_links(self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise fault_of(error, self._folder) from error
        parts = _parts(items, self._processes)
        running: list[StageHandle] = []
        results: dict[str, Any] = {}
        try:
            running += [self._launcher.start(self._call(part)) for part in parts]
            for part, process in zip(parts, running, strict=True):
                results |= self._results_of(part, process)
        except BaseException:
            for process in running:
                process.stop()
            raise
        return results

    def _call(self, items: Sequence[SampleSource]) -> StageCall:
        cuts = [
            CutItem(
                str(item.file),
                item.sample.clip,
                item.sample.row.start,
                item.sample.row.end,
                item.stamp,
                item.kind,
                item.whole,
                item.sample.clip in self._copied,
                item.damaged,
            )
            for item in items
        ]
        job = CutJob(
            folder=str(self._folder), cuts=cuts, exact=self.exact, deinterlace=self._deinterlace
        )
        return StageCall(name="cut", job=job, device="cpu", log=self._log)

    def _results_of(self, items: Sequence[SampleSource], process: StageHandle) -> dict[str, Any]:
        """Wait for a process, and return what became of its items. Raises PenstockError."""
        try:
            results = process.wait().notes
            return {i.sample.clip: results[i.sample.clip] for i in items}
        except (StageDied, CannotFit) as error:
            results = dict(process.outcome.notes)
            first = next((item for item in items if item.sample.clip not in results), None)
            if first is None or not (isinstance(error, CannotFit) or is_crash(error)):
                raise
            for item in items:
                if item.file == first.file:
                    results.setdefault(item.sample.clip, {"error": error.message})
        except Killed:
            results = dict(process.outcome.notes)
            made = any(item.sample.clip in results for item in items)
            self._kills = 0 if made else self._kills + 1
            if self._kills > MAX_RESTARTS:
                raise
        return {i.sample.clip: results[i.sample.clip] for i in items if i.sample.clip in results}


def _parts(items: Sequence[SampleSource], count: int) -> list[list[SampleSource]]:
    """Return at most so many parts of equal size, in order: neighbouring chunks of a video are
    decoded in one pass."""
    size = -(-len(items) // count)
    return [[*items[at : at + size]] for at in range(0, len(items), size)]
