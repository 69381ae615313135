"""The sound stage as a long-running worker: cuts each requested file, and reads its sound.

A fault in a file is reported to the caller and not stored, as by the frames stage.
"""

from pathlib import Path
from typing import Any

from artifacts.packs import record_sets_of
from artifacts.schema import MediaIndex
from artifacts.store import open_store
from stages.frames.job import FramesItem
from stages.frames.live import cut_requests
from stages.process.events import EventReporter
from stages.process.job import parse_job
from stages.sound import SILENCES, STAGE, LiveSoundJob, sound_key
from stages.sound.run import publish_sounds
from stages.sound.track import sound_of_chunks


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Store frames and sound of each requested medium, and report its index or its failure."""
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
