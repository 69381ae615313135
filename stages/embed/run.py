"""The embed stage: turns frame chunks into records of vectors, one per frame, in one process for a
whole wave.

A tiled image gets one more vector per tile, all cut from the one image in memory. The tiles go
through the half a few at a time, so memory depends neither on the image's size nor on the number of
tiles.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from artifacts.packs import Record, RecordSet
from artifacts.tiles import OFF, boxes_of
from artifacts.vectors import vector_record
from stages.embed.job import EmbedJob
from stages.embed.precision_trial import try_fp16
from stages.models.encoding.batch import encode_batches
from stages.models.encoding.chunks import Refusal, read_chunk
from stages.models.encoding.job import EncodeItem
from stages.models.encoding.run import EncodeSpec, encode_all
from stages.models.halves.records import FeatureRecord
from stages.models.loading import warm as warm
from stages.models.processors.clip import Clip
from stages.models.processors.images import prepare_images, prepare_parts
from stages.models.processors.side_inputs import Prepared
from stages.process.job import parse_job
from stages.process.report import EventReporter


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Publish the missing vectors or failures of all chunks."""
    job = parse_job(EmbedJob, job_fields)
    cut = job.tiles != OFF
    spec = EncodeSpec(
        stage="embed",
        kind="embeddings",
        read=partial(read_parts, job) if cut else read_frames,
        record=record_of,
        parts=lambda meta: len(boxes_of(meta["height"], meta["width"], job.tiles, job.edge)),
        reads_text=False,
        encode=partial(encode_parts, max_parts=job.pictures) if cut else encode_batches,
        divide=partial(_pieces, max_parts=1),
        unite=_joined,
    )
    if job.trial and not job.live:
        try_fp16(job, spec)
    encode_all(job, spec, report)


def read_frames(record_set: RecordSet, processor: Any, item: EncodeItem) -> Prepared | Refusal:
    """Read the frames of one chunk, each as a separate image."""
    return read_chunk(record_set, item, lambda clip: prepare_images(processor, clip))


def read_parts(
    job: EmbedJob, record_set: RecordSet, processor: Any, item: EncodeItem
) -> Prepared | Refusal:
    """Read one image and its tiles."""
    if item.kind != "image":
        return read_frames(record_set, processor, item)

    def prepare(clip: Clip) -> Prepared:
        boxes = boxes_of(clip.frames.shape[1], clip.frames.shape[2], job.tiles, job.edge)
        return prepare_parts(processor, clip, [box[1:] for box in boxes])

    return read_chunk(record_set, item, prepare)


def encode_parts(
    half: Any, batches: Sequence[Sequence[Prepared]], max_parts: int
) -> list[list[FeatureRecord]]:
    """Encode like `encode_batches`, but at most `max_parts` images of a row per pass."""
    rows = [row for batch in batches for row in batch]
    pieces = [_pieces(row, max_parts) for row in rows]
    made = iter(encode_batches(half, [[piece] for found in pieces for piece in found]))
    whole = iter(
        [_joined(row, [next(made)[0] for _ in f]) for row, f in zip(rows, pieces, strict=True)]
    )
    return [[next(whole) for _ in batch] for batch in batches]


def _pieces(row: Prepared, max_parts: int) -> list[Prepared]:
    return [
        replace(
            row,
            inputs={name: value[at : at + max_parts] for name, value in row.inputs.items()},
            count=replace(row.count, tokens=count, media=count),
        )
        for at in range(0, row.count.media, max_parts)
        for count in [min(max_parts, row.count.media - at)]
    ]


def _joined(row: Prepared, made: Sequence[FeatureRecord]) -> FeatureRecord:
    vectors = torch.cat([each.features["image"]["pooler_output"] for each in made])
    features = {"image": {**made[0].features["image"], "pooler_output": vectors}}
    return replace(made[0], features=features, count=row.count)


def record_of(key: str, row: FeatureRecord) -> Record:
    """Return the record of a chunk's vectors, which are not normalized."""
    vectors: torch.Tensor = row.features["image"]["pooler_output"]
    return vector_record(key, vectors.float().cpu().numpy())
