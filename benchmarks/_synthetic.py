"""Stages that publish tiny records at once, packed as the real ones pack theirs: what is left of a
run's time is orchestration."""

from dataclasses import asdict
from typing import Any

from artifacts.keys import item_key
from artifacts.packs import Record, RecordSet
from artifacts.schema import ChunkIndex, MediaIndex
from artifacts.store import open_store
from flows.machine.launch import ENTRIES as STAGES
from flows.machine.launch import DirectLauncher
from stages.frames.job import FramesItem
from stages.process.job import items_of
from stages.process.report import EventReporter
from stages.process.stage_process import Listener

SIDE = 8
"""Height and width of every picture, in pixels."""
PACK_RECORDS = 64
"""Pictures stored together, as by the real frames stage."""
PAYLOAD = b"penstock" * 8


def frames(job: dict[str, Any], report: EventReporter) -> None:
    """An index and one chunk of frames for each medium."""
    store, namespace = open_store(job["store"]), job["namespace"]
    frames, media = RecordSet(store, "frames", namespace), RecordSet(store, "media", namespace)
    chunk = ChunkIndex(index=0, start=0.0, end=0.0, times=(0.0,), height=SIDE, width=SIDE)
    index = MediaIndex(kind="image", height=SIDE, width=SIDE, duration=0.0, chunks=(chunk,))
    told = items_of(FramesItem, job["media"])
    report.total(len(told))
    for at in range(0, len(told), PACK_RECORDS):
        group = [medium.digest for medium in told[at : at + PACK_RECORDS]]
        keys = [item_key(namespace, digest, 0) for digest in group]
        frames.publish([Record(key=key, meta=asdict(chunk), payload=PAYLOAD) for key in keys])
        media.publish([Record(key=digest, meta=index.to_json()) for digest in group])
        for key in keys:
            report.item(key)


def encode(job: dict[str, Any], report: EventReporter) -> None:
    """Features for each chunk, a pack a batch."""
    RecordSet(open_store(job["store"]), "frames", job["frames_namespace"])
    publish(job, "features", {"tokens": 4}, report)


def decode(job: dict[str, Any], report: EventReporter) -> None:
    """A caption for each chunk, a pack a batch."""
    RecordSet(open_store(job["store"]), "features", job["features_namespace"])
    publish(job, "captions", {"caption": "a red square on grey", "tokens": 7}, report)


def publish(job: dict[str, Any], kind: str, meta: dict[str, Any], report: EventReporter) -> None:
    record_set = RecordSet(open_store(job["store"]), kind, job["namespace"])
    for batch in job["batches"]:
        records = [Record(key=key, meta=meta, payload=PAYLOAD) for key, *_ in batch]
        for key in record_set.publish(records):
            report.item(key, tokens=meta["tokens"])


ENTRIES = {name: f"benchmarks._synthetic:{name}" for name in ("frames", "encode", "decode")}


class SyntheticLauncher(DirectLauncher):
    """Starts real processes, of the stages above."""

    def __init__(self, listen: Listener) -> None:
        super().__init__(listen, {**STAGES, **ENTRIES})
