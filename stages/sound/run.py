"""The sound stage: reads one sound track of each media file, and stores it chunk by chunk.

A killed run decodes a track from its start again, and stores the missing chunks. Their bytes do not
depend on where it was killed. Memory is bounded: each worker thread holds a pack of chunks. As a
long-running worker, the stage cuts each requested file, too.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from operator import not_
from pathlib import Path

import numpy as np

from artifacts.records.claims import POLL_SECONDS, WorkClaims, claims_at
from artifacts.records.packs import Record, RecordSet, RecordUnion, record_sets_of
from artifacts.records.store import open_store
from artifacts.schema import MediaIndex
from stages.frames.frame_recorder import Watchdog, failing
from stages.frames.job import FramesItem
from stages.frames.live import cut_requests
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job
from stages.sound import SILENCES, STAGE, LiveSoundJob, SoundItem, SoundJob, sound_key
from stages.sound.track import NO_SOUND, SILENT, ChunkSound, notes_of, sound_of_chunks

PACK_BYTES = 4 << 20
"""Chunks are stored as soon as they reach this many bytes."""
LEAST_SECONDS = 0.1
"""A shorter sound counts as none: it holds no word, and encoders refuse such."""
COUNTED = (NO_SOUND, SILENT)
"""Notes that are ordinary, so their files are counted by whoever reads the records."""


def run(fields: JobFields, report: EventReporter) -> None:
    """Store the sound of every chunk of the job that is not stored yet.

    A medium that cannot be used is recorded as failed, and the others continue. Raises
    EnvironmentFault for a fault of the store or a disk.
    """
    job, watchdog = parse_job(SoundJob, fields), Watchdog()
    stage = Reading(job, report, watchdog)
    record_sets = (stage.sounds, stage.silences, stage.failures)
    with watchdog, claims_at(stage.store, *record_sets) as stage.turns:
        while stage.to_do:
            media, stage.to_do = stage.to_do, []
            with ThreadPoolExecutor(max(1, job.workers), thread_name_prefix="sound") as pool:
                try:
                    list(pool.map(stage.read, media))
                except BaseException:
                    stage.stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            if len(stage.to_do) == len(media):  # other runs are reading all of them
                time.sleep(POLL_SECONDS)


def run_live(fields: JobFields, report: EventReporter) -> None:
    """Store frames and sound of each requested medium, and report its index or its failure. A fault
    in a file is reported to the caller and not stored, as by the frames stage."""
    job = parse_job(LiveSoundJob, fields)
    places = [(kind, job.namespace) for kind in (STAGE.writes, SILENCES)]
    record_sets = record_sets_of(open_store(job.frames.store), *places)

    def read_sound(medium: FramesItem, index: MediaIndex) -> None:
        if medium.kind != "video":
            return
        spans = [(chunk.start, chunk.end) for chunk in index.chunks]
        keys = [sound_key(job.namespace, medium.digest, chunk) for chunk in index.chunks]
        sounds = sound_of_chunks(Path(medium.path), spans, job.rate)
        for pair in zip(keys, sounds, strict=True):
            publish_sounds([pair], *record_sets)
        for records in record_sets:
            records.forget(keys)  # the reader looks them up again

    cut_requests(job.frames, report, read_sound)


class Reading:
    """One job: its record sets and the remaining work."""

    def __init__(self, job: SoundJob, report: EventReporter, watchdog: Watchdog) -> None:
        self.store = open_store(job.store)
        self.sounds, self.silences, self.failures = record_sets_of(
            self.store, *((kind, job.namespace) for kind in ("sound", SILENCES, "failures"))
        )
        self.turns: WorkClaims
        """Claims of chunks: which run reads which."""
        self.stop = threading.Event()
        """Set when workers must end after their current chunk."""
        self._job, self._report, self._watchdog = job, report, watchdog
        # Two files with the same content are one medium.
        media = {item.digest: item for item in job.media}.values()
        self.to_do = [item for item in media if self._missing(item)]
        """Media that this run has not claimed yet."""
        report.total(sum(len(self._missing(item)) for item in self.to_do))

    def read(self, item: SoundItem) -> None:
        if self.stop.is_set():
            return
        keys = self._missing(item)
        turn = self.turns.take(partial(self._missing, item))
        if turn is None:
            self.to_do.append(item)
        if not turn:
            return
        try:
            self._read_video(item)
        finally:
            self.turns.done(keys)

    def _missing(self, item: SoundItem) -> list[str]:
        """Return the keys of chunks that have neither a record nor a failure."""
        keys = dict.fromkeys(chunk.key for chunk in item.chunks)
        record_sets = (self.sounds, self.silences, self.failures)
        return [key for key in keys if not any(key in records for records in record_sets)]

    def _read_video(self, item: SoundItem) -> None:
        """Store the missing chunks of a video, or record why they have no sound."""
        medium = FramesItem(item.path, item.digest, "video", None, item.stamp)
        missing = partial(self._missing, item)
        with failing(medium, self.failures, self._report, self._watchdog, missing) as path:
            self._read_chunks(item, medium, path)

    def _read_chunks(self, item: SoundItem, medium: FramesItem, path: Path) -> None:
        missing, job = set(self._missing(item)), self._job
        chunks = [chunk for chunk in item.chunks if chunk.key in missing]
        spans = [(chunk.start, chunk.end) for chunk in chunks]
        made: list[tuple[str, ChunkSound]] = []
        with contextlib.closing(sound_of_chunks(path, spans, job.rate, job.track)) as sounds:
            for chunk, sound in zip(chunks, sounds, strict=True):
                made.append((chunk.key, sound))
                full = sum(one.samples.nbytes for _, one in made) >= PACK_BYTES
                if full or chunk is chunks[-1] or self.stop.is_set():
                    medium.check()
                    for key in publish_sounds(made, self.sounds, self.silences):
                        self._report.answered(key, label=Path(medium.path).name)
                    made.clear()
                if self.stop.is_set():
                    return
        stored = RecordUnion([self.sounds, self.silences])
        metas = [stored.meta(chunk.key) for chunk in item.chunks if chunk.key in stored]
        for note in notes_of(metas):
            if note not in COUNTED:
                self._report.warning(f"{medium.path}: {note}")


def publish_sounds(
    made: Sequence[tuple[str, ChunkSound]], sounds: RecordSet, silences: RecordSet
) -> list[str]:
    """Publish the sound of chunks by key, or that they have none. Return the new keys."""
    records = [
        Record(key=key, meta=sound.meta, payload=sound.samples.view(np.uint8).data)
        for key, sound in made
    ]
    heard = [record.meta["seconds"] >= LEAST_SECONDS for record in records]
    of_silence = silences.publish(list(compress(records, map(not_, heard))))
    return [*of_silence, *sounds.publish(list(compress(records, heard)))]
