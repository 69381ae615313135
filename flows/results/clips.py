"""Writes a clip of each chunk of longer videos to `OUT/clips`, for trainers that read files. Clips
that are still correct are not cut again, and clips that a user edited are kept.

`index.json` records the file stamp that each clip had when it was cut. It is written before clips
get their final names, so a clip that the index does not list was not made by a run.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.files import HALF, OURS, write_json
from artifacts.samples import clip_key
from artifacts.stamps import stamp_of
from artifacts.store import fault_of
from artifacts.words import counted, first_of
from flows.job.prepare import Job
from flows.machine.launch import Launcher
from flows.options.text import OutputOptions
from flows.results.cutting import Cutter, Tell, batches
from flows.results.sample_sources import SampleSource

CLIPS, INDEX = "clips", "index.json"
LEAD_SECONDS = 0.5
"""A clip may begin so long before its chunk and nothing is said of it."""


def kept_note(names: Sequence[str], folder: Path) -> str:
    """Return in words which files of a folder are people's."""
    return (
        f"kept as people wrote or edited them: {counted(len(names), 'file')} in {folder} "
        f"({first_of(names)}); --existing replace replaces them"
    )


class Clips:
    """The clips in `OUT`, and the outcome for those that were requested."""

    def __init__(self, job: Job, launcher: Launcher, tell: Tell) -> None:
        self.folder = job.out / CLIPS
        self._replace = OutputOptions.of(job.config).replaces
        self._again = job.config.retry_failed
        self._index = _read_index(self.folder / INDEX)
        self._aside = self.folder / f"{HALF}new"
        self._cutter = Cutter(job, launcher, tell, self._aside)
        self.kept: list[str] = []
        """Names of clips that people edited, or put there."""
        self.refused: dict[str, str] = {}
        """Key of what could not be cut out → why."""
        self.longest_lead = 0.0
        """Most seconds from the beginning of a clip to that of its chunk."""

    def of(self, items: Sequence[SampleSource]) -> dict[str, Path]:
        """Return the key of each sample → its clip, cutting those that are missing. Raises
        PenstockError."""
        keys = {item.sample.key: key_of(item) for item in items}
        wanted = {keys[item.sample.key]: item for item in reversed(items)}
        there = self._there()
        missing = [item for key, item in wanted.items() if not self._is_right(key, there)][::-1]
        self._cut(missing)
        found = {key: path for key in wanted if (path := self._told(key)) is not None}
        return {name: found[key] for name, key in keys.items() if key in found}

    def made(self, path: Path) -> bool:
        """Return whether a file is a clip as it was cut here once, in whatever folder."""
        told = self._index.get(path.stem, {})
        with contextlib.suppress(OSError):
            stamp = stamp_of(path)
            return [stamp.size, stamp.modified] == told.get("state")
        return False

    def notes(self) -> Iterator[str]:
        """Yield what a person should know of the clips."""
        if self.refused:
            why, count = next(iter(self.refused.values())), counted(len(self.refused), "chunk")
            yield f"{count} could not be cut out for trainers ({why})"
        if self.kept:
            yield kept_note(self.kept, self.folder)
        if self.longest_lead > LEAD_SECONDS:
            yield (
                f"clips begin at a keyframe, up to {self.longest_lead:.1f} s before their chunk, "
                f"and trainers see that too: media_start in {self.folder / INDEX}"
            )

    def _there(self) -> dict[str, str]:
        """Return the key of each file in the folder → its name."""
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            return {Path(entry.name).stem: entry.name for entry in entries if entry.is_file()}
        return {}

    def _is_right(self, key: str, there: dict[str, str]) -> bool:
        """Return whether a clip need not be cut: it is there, is a person's, or cannot be had."""
        told = self._index.get(key, {})
        if "error" in told and not self._again:
            return True
        name = there.get(key)
        if name is None:
            return False
        if self.made(self.folder / name):
            return True
        if self._replace:
            return False
        self.kept.append(name)
        self._index[key] = {**told, "file": name}
        return True

    def _told(self, key: str) -> Path | None:
        """Return the clip of a key, if there is one."""
        told = self._index.get(key, {})
        if "error" in told:
            self.refused[key] = told["error"]
            return None
        self.longest_lead = max(self.longest_lead, told.get("media_start", 0.0))
        return self.folder / told["file"] if "file" in told else None

    def _cut(self, items: Sequence[SampleSource]) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)  # of a run that was killed
        try:
            for batch in batches(items):
                self._place(batch)
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)

    def _place(self, batch: Iterable[SampleSource]) -> None:
        """Cut a few clips and give them their names. Raises PenstockError."""
        asked = [replace(i, sample=replace(i.sample, key=key_of(i))) for i in batch]
        made = self._cutter(asked)
        why = dict.fromkeys((i.sample.key for i in asked), "") | self._cutter.why
        try:
            for key in (i.sample.key for i in asked):
                if key not in made:
                    self._index[key] = {"error": why[key]}
                    continue
                media = made[key]
                stamp = stamp_of(media.path)
                self._index[key] = {
                    "file": media.path.name,
                    "media_start": media.start,
                    "state": [stamp.size, stamp.modified],
                }
            write_json(self.folder / INDEX, {"clips": self._index})
            (self.folder / OURS).touch()
            for media in made.values():
                os.replace(media.path, self.folder / media.path.name)
        except OSError as error:
            raise fault_of(error, self.folder) from error


def key_of(item: SampleSource) -> str:
    """Return the name without suffix of what holds this chunk alone."""
    row = item.sample.row
    return clip_key(row.media_path, item.sample.content, row.start, row.end, item.chunk)


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["clips"]
        return {str(key): dict(clip) for key, clip in told.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
