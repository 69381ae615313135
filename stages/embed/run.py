"""The embed stage: turns frame chunks into records of vectors, one per frame, in one process for a
whole wave.

A tiled image gets one more vector per tile, all cut from the one image in memory. The tiles go
through the half a few at a time, so memory depends neither on the image's size nor on the number of
tiles.

On a job's first images the stage compares vectors in fp16 with those in fp32, and stores the
result. The halves in the two precisions are loaded one after the other, so the comparison takes no
more memory than the job.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from artifacts.errors import HalfChecked
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.records.vectors import vector_record
from artifacts.tiles import OFF, boxes_of
from stages.embed import MIN_COSINE, TRIED_IMAGES, EmbedJob
from stages.memory.oom_retry import release_memory
from stages.models.encoding import EncodeItem
from stages.models.encoding.batch import encode_batches
from stages.models.encoding.run import EncodeSpec, Refusal, encode_all, read_chunk
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob
from stages.models.loading import warm as warm
from stages.models.processors.blank_clips import Clip
from stages.models.processors.images import prepare_images, prepare_parts
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Half, Processor
from stages.process.checks import FP16, Verdicts
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job


def try_fp16(job: EmbedJob, spec: EncodeSpec) -> None:
    """Store whether the vision half can run in fp16, and raise HalfChecked: the run is planned
    again with the result. Does nothing if no image can be read."""
    source = ModelJob.of(job.half)
    rows = list(_first_rows(job, spec, source))
    if not rows:
        return
    wide, narrow = (_vectors(replace(source, dtype=d), spec, rows) for d in ("float32", "float16"))
    least = float(torch.nn.functional.cosine_similarity(wide.double(), narrow.double()).min())
    cosine = least if math.isfinite(least) else 0.0  # beyond the range of fp16
    holds, images = cosine >= MIN_COSINE, len(wide)
    how = f"runs in {'fp16' if holds else 'fp32'} (cosine of fp16 to fp32 at least {cosine:.6f}"
    how += f" on {images} images, {MIN_COSINE} is required)"
    verdicts = Verdicts(open_store(job.store), job.half.device)
    outcome = {"holds": holds, "cosine": cosine, "images": images}
    verdicts.keep(FP16, {"half": job.fp16_check}, outcome, f"{job.half.title}: it {how}")
    raise HalfChecked(f"the vision half {how}")


def _first_rows(job: EmbedJob, spec: EncodeSpec, source: ModelJob) -> Iterator[Prepared]:
    """Yield the job's first chunks that can be read, until they have TRIED_IMAGES images."""
    frames = RecordSet(open_store(job.frames_store or job.store), "frames", job.frames_namespace)
    processor, images = source.processor(), 0
    for item in (item for batch in job.batches for item in batch):
        if images >= TRIED_IMAGES:
            return
        row = spec.read(frames, processor, item)
        if isinstance(row, Prepared):
            images += row.count.media
            yield row


def _vectors(source: ModelJob, spec: EncodeSpec, rows: list[Prepared]) -> torch.Tensor:
    """Return the vectors of all images, one row per image, by a half that is released after it."""
    half = source.load_reloadable("vision")
    made = half.call(lambda model: spec.encode(model, [[row] for row in rows]))
    vectors = [record.features["image"]["pooler_output"].float().cpu() for (record,) in made]
    del half, made
    release_memory()
    return torch.cat(vectors)


def run(job_fields: JobFields, report: EventReporter) -> None:
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
    if job.fp16_check and not job.for_clients:
        try_fp16(job, spec)
    encode_all(job, spec, report)


def read_frames(
    record_set: RecordSet, processor: Processor, item: EncodeItem
) -> Prepared | Refusal:
    """Read the frames of one chunk, each as a separate image."""
    return read_chunk(record_set, item, lambda clip: prepare_images(processor, clip))


def read_parts(
    job: EmbedJob, record_set: RecordSet, processor: Processor, item: EncodeItem
) -> Prepared | Refusal:
    if item.kind != "image":
        return read_frames(record_set, processor, item)

    def prepare(clip: Clip) -> Prepared:
        boxes = boxes_of(clip.frames.shape[1], clip.frames.shape[2], job.tiles, job.edge)
        return prepare_parts(processor, clip, [box[1:] for box in boxes])

    return read_chunk(record_set, item, prepare)


def encode_parts(
    half: Half, batches: Sequence[Sequence[Prepared]], max_parts: int
) -> list[list[FeatureRecord]]:
    """Encode like `encode_batches`, but at most `max_parts` images of a row per pass."""
    rows = [row for batch in batches for row in batch]
    pieces = [_pieces(row, max_parts) for row in rows]
    encoded = iter(encode_batches(half, [[piece] for row_pieces in pieces for piece in row_pieces]))
    whole_pictures = iter(
        [_joined(row, [next(encoded)[0] for _ in f]) for row, f in zip(rows, pieces, strict=True)]
    )
    return [[next(whole_pictures) for _ in batch] for batch in batches]


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
    vectors = torch.cat([record.features["image"]["pooler_output"] for record in made])
    features = {"image": {**made[0].features["image"], "pooler_output": vectors}}
    return replace(made[0], features=features, count=row.count)


def record_of(key: str, row: FeatureRecord) -> Record:
    """Return the record of a chunk's vectors, which are not normalized."""
    vectors: torch.Tensor = row.features["image"]["pooler_output"]
    return vector_record(key, vectors.float().cpu().numpy())
