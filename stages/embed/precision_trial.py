"""Compares vectors in fp16 with those in fp32 on a job's first images, and stores the result.

The two halves are loaded one after the other, so the trial takes no more memory than the job.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from artifacts.errors import HalfTried
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from stages.embed.job import EmbedJob
from stages.embed.trials import KIND, MIN_COSINE, TRIED_IMAGES, VERDICT
from stages.memory.oom_retry import release_memory
from stages.models.encoding.run import EncodeSpec
from stages.models.loading import ModelJob
from stages.models.processors.side_inputs import Prepared


def try_fp16(job: EmbedJob, spec: EncodeSpec) -> None:
    """Store whether the vision half can run in fp16, and raise HalfTried: the run is planned
    again with the result. Does nothing if no image can be read."""
    source = ModelJob.of(job.half)
    rows = list(_first_rows(job, spec, source))
    if not rows:
        return
    wide, narrow = (_vectors(replace(source, dtype=d), spec, rows) for d in ("float32", "float16"))
    found = float(torch.nn.functional.cosine_similarity(wide.double(), narrow.double()).min())
    cosine = found if math.isfinite(found) else 0.0  # beyond the range of fp16
    holds, images = cosine >= MIN_COSINE, len(wide)
    meta = {"holds": holds, "cosine": cosine, "images": images}
    RecordSet(open_store(job.store), KIND, job.trial).publish([Record(key=VERDICT, meta=meta)])
    raise HalfTried(
        f"the vision half runs in {'fp16' if holds else 'fp32'} (cosine of fp16 to fp32 at least "
        f"{cosine:.6f} on {images} images, {MIN_COSINE} is required)"
    )


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
    vectors = [each.features["image"]["pooler_output"].float().cpu() for (each,) in made]
    del half, made
    release_memory()
    return torch.cat(vectors)
