"""Makes WebDataset shards of stored captions: which samples there are, and where their media come
from. It runs no model."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.captions import Caption
from artifacts.errors import CannotFit, Killed, StageDied
from artifacts.files import HALF
from artifacts.samples import Media, Sample, media_suffix, sample_key
from artifacts.shards import DATASET, SHARD_BYTES, kept_shards, read_index, write_shards
from artifacts.stamps import Stamp
from artifacts.store import fault_of
from flows.job.launch import KILLS, Launcher, StageCall
from flows.job.prepare import Job
from flows.job.sources import MediaFile
from flows.job.tasks import Medium
from flows.results.outputs import captions_of
from stages.process.exit_diagnosis import is_crash

SAME_SECONDS = 0.001
"""Seconds from the end of a medium: a chunk that reaches this close to it holds all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSource:
    """One sample and the source of its media."""

    sample: Sample
    file: Path
    whole: bool
    """Whether the file's own bytes are the sample's media."""
    stamp: Stamp | None
    """State of the file that was captioned."""


def write_dataset(job: Job, launcher: Launcher, tell: Callable[[str, int, int], None]) -> list[str]:
    """Bring `OUT/webdataset` to what is captioned; returns warnings. Raises PenstockError."""
    folder = job.out / DATASET
    items = [item for group in _items(job) for item in group]
    before = read_index(folder)
    shards = kept_shards(folder, [item.sample.digest() for item in items])
    rest = items[sum(shard.samples for shard in shards) :]
    cutter = Cutter(job, launcher, tell, folder / f"{HALF}new")
    if rest or shards != before:
        tell("webdataset", len(items), len(items) - len(rest))
        shards = write_shards(folder, shards, _samples(rest, cutter))
    bare = sum(shard.without_media for shard in shards)
    if not bare:
        return []
    why = f" ({cutter.refused[0]})" if cutter.refused else ""
    return [
        f"{bare} webdataset samples are without media: they could not be cut out, or their files "
        f"were changed{why}"
    ]


def is_stale(job: Job) -> bool:
    """Return whether there is a dataset that holds something else than what is captioned now."""
    folder = job.out / DATASET
    before = read_index(folder)
    digests = [item.sample.digest() for group in _items(job) for item in group] if before else []
    return kept_shards(folder, digests) != before or sum(s.samples for s in before) != len(digests)


def _items(job: Job) -> Iterator[list[SampleSource]]:
    copies: Counter[tuple[str, str, str]] = Counter()
    for file, medium in zip(job.files, job.contents, strict=True):
        captions = captions_of(job, file, medium)
        if captions:
            alike = (file.media_path, medium.digest, medium.prompt)
            copies[alike] += 1
            yield _items_of(job, file, medium, captions, copies[alike])


def _items_of(
    job: Job, file: MediaFile, medium: Medium, captions: Sequence[Caption], copy: int
) -> list[SampleSource]:
    index = job.ledger.index(medium)
    assert index is not None
    numbers = {chunk.start: chunk.index for chunk in index.chunks}
    whole = captions[0].start == 0 and captions[0].end > index.duration - SAME_SECONDS
    return [
        SampleSource(
            sample=Sample(
                key=sample_key(row.media_path, medium.digest, row.prompt, copy, numbers[row.start]),
                row=row,
                content=medium.digest,
            ),
            file=file.path,
            whole=whole,
            stamp=medium.stamp,
        )
        for row in captions
    ]


def _samples(
    items: Sequence[SampleSource], cutter: "Cutter"
) -> Iterator[tuple[Sample, Media | None]]:
    """Yield each sample with its media. What was cut out is gone again when the next one is asked
    for."""
    for batch in _batches(items):
        cut = cutter([item for item in batch if not item.whole])
        for item in batch:
            if item.whole:
                yield (
                    item.sample,
                    Media(path=item.file, suffix=media_suffix(item.file.name), stamp=item.stamp),
                )
                continue
            media = cut.get(item.sample.key)
            yield item.sample, media
            if media is not None:
                media.path.unlink(missing_ok=True)


def _batches(items: Sequence[SampleSource]) -> Iterator[list[SampleSource]]:
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
    """A cutter of chunks of videos in a process of its own, which a damaged file may bring down."""

    def __init__(
        self, job: Job, launcher: Launcher, tell: Callable[[str, int, int], None], aside: Path
    ) -> None:
        self._log = job.out / "logs" / "cut.log"
        self._launcher = launcher
        self._tell = tell
        self._folder = aside / "cuts"
        self.refused: list[str] = []
        """Names of files, each with why nothing could be cut out of it."""
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
