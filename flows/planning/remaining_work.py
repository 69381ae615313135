"""Counts the remaining work of each stage of a job. Opens no file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from artifacts.schema import MediaKind
from flows.job.prepare import Job
from flows.planning.sizes import Estimate
from flows.planning.workloads import KINDS, Workload, workload_of
from stages.process.stage import StageSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class RemainingWork:
    """The remaining work of one kind of media."""

    workload: Workload
    """A typical chunk."""
    pixels: float
    """Pixels to decode."""
    frame_bytes: float
    """Bytes of frames to store."""
    left: Mapping[str, int]
    """Stage name → number of chunks without its output."""


def remaining_work(job: Job, found: Sequence[Estimate]) -> list[RemainingWork]:
    """Return the remaining work for each kind of media. `found`: estimate of each medium."""
    return [made for kind in KINDS if (made := _of_kind(job, kind, found)) is not None]


def _of_kind(job: Job, kind: MediaKind, found: Sequence[Estimate]) -> RemainingWork | None:
    pairs = [(m, e) for m, e in zip(job.media, found, strict=True) if m.kind == kind and e.chunks]
    if not pairs:
        return None
    ledger = job.ledger
    uncut = [e for m, e in pairs if ledger.media_index(m) is None]
    tasks = [t for t in ledger.tasks([m for m, _ in pairs]) if not ledger.has_failed(t)]
    chunks = sum(e.chunks for _, e in pairs)
    seen = [e for _, e in pairs if not e.reuses_features]
    frames = math.ceil(sum(e.frames for e in seen) / sum(e.chunks for e in seen))
    middle = sorted((e for _, e in pairs), key=lambda e: math.prod(e.stored))[len(pairs) // 2]
    prompt = pairs[0][0].prompt

    def remaining(stage: StageSpec) -> int:
        of_prompt = stage.writes in ledger.namespaces.prompted
        uncounted = sum(e.chunks for e in uncut if of_prompt or not e.reuses_features)
        return uncounted + len({t[stage.writes] for t in tasks if not ledger.has(t, stage)})

    workload = workload_of(job.model, kind, chunks, frames, middle.stored, middle.shown, prompt)
    return RemainingWork(
        workload=replace(workload, parts=middle.parts),
        pixels=sum(e.shown_frames * math.prod(e.shown) for e in uncut),
        frame_bytes=sum(e.frame_bytes for e in uncut),
        left={stage.name: remaining(stage) for stage in job.pipeline[1:]},
    )
