"""Estimates the disk space of a job's media from file headers, before any frame is decoded."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.errors import MediaError
from artifacts.remote.media_cache import is_here
from artifacts.schema import Sampling
from artifacts.texts.trainers import WITH_CLIPS
from artifacts.tiles import boxes_of
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Medium
from flows.core.options.formats import ORIGINAL
from flows.core.pipelines import encoder_of
from stages.process.host_memory import cores

if TYPE_CHECKING:
    from av.container import InputContainer


FILES_PER_TASK = 16
"""Number of files whose headers are read in one thread task."""
UNKNOWN_SECONDS = 60.0
"""Assumed length of a video whose header has none."""
SHOT_SECONDS = 5.0
"""Assumed length of a shot: the number of shots is known only after decoding all frames."""
UNKNOWN_RATE = 30.0
"""Assumed frames per second of a video whose header has none."""
CLIP_BYTES = 0.3 / 8
"""Bytes of an exact clip per pixel of its frames (docs/performance.md)."""
UNKNOWN_SIZE = (1080, 1920)
"""Assumed height and width of a medium whose header cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The expected size of one medium."""

    seconds: float
    chunks: int
    frames: int
    frame_bytes: int
    """Bytes of stored frames, deleted after encoding."""
    feature_bytes: int
    """Bytes of stored features, kept for the next prompt."""
    sound_bytes: int = 0
    """Bytes of stored sound, deleted after encoding."""
    heard_bytes: int = 0
    """Bytes of its stored features, kept for the next prompt."""
    chunk_frames: int = 0
    """Frames of its longest chunk that the model sees."""
    stored_frames: int = 0
    """Frames of its longest chunk that are stored."""
    stored: tuple[int, int] = (0, 0)
    """Height and width of a stored frame, in pixels."""
    shown: tuple[int, int] = (0, 0)
    """Height and width of a frame in the file, in pixels."""
    failure: Mapping[str, Any] | None = None
    """Why it cannot be used, by its header or an earlier run; None: it seems usable."""
    shown_frames: int = 0
    """Frames in the file, used or not."""
    parts: int = 1
    """Number of tiles of an image, the whole image included."""
    sound_seconds: float = 0.0
    """Seconds of its longest chunk; 0 for an image. Its sound is at most as long."""
    reuses_features: bool = False
    """Whether the same medium has another prompt, whose frames and features it reuses."""

    @property
    def bytes(self) -> int:
        """Return its disk space in bytes until it is encoded."""
        return self.frame_bytes + self.feature_bytes + self.sound_bytes + self.heard_bytes


def clip_pixels(job: Job, expected: Sequence[Estimate]) -> float:
    """Return the pixels of the clips that the data sets of a run may need, at most: those of videos
    of several chunks. `expected`: estimate of each medium."""
    formats = WITH_CLIPS & {*job.config.groups.outputs.format}
    if not formats or job.config.groups.data_sets.media == ORIGINAL:
        return 0.0
    pairs = zip(job.media, expected, strict=True)
    cut = [e for medium, e in pairs if medium.kind == "video" and e.chunks > 1]
    return sum(
        (e.shown_frames or e.seconds * UNKNOWN_RATE) * math.prod(e.shown)
        for e in cut
        if not e.reuses_features
    )


def estimates(job: Job) -> list[Estimate]:
    """Estimate each medium from its index if there is one, else from its header."""
    media = job.media
    unknown = [m for m in media if job.ledger.media_index(m) is None and _failure(job, m) is None]
    groups = [unknown[at : at + FILES_PER_TASK] for at in range(0, len(unknown), FILES_PER_TASK)]
    with ThreadPoolExecutor(cores()) as pool:
        read = chain.from_iterable(pool.map(lambda group: [*map(_header, group)], groups))
        headers = dict(zip((m.digest for m in unknown), read, strict=True))
    expected: list[Estimate] = []
    seen: set[Any] = set()
    for medium in media:
        estimate = _estimate(job, medium, headers.get(medium.digest))
        encoder = encoder_of(job.pipeline)  # one without a part, a server, gets the same frames
        of_prompt = bool(encoder.part) and encoder.writes in job.ledger.variant.prompted
        identity = (medium.digest, of_prompt and medium.prompt)
        if identity in seen:  # it reuses the frames and features of another prompt
            estimate = replace(estimate, seconds=0.0, frames=0, shown_frames=0, frame_bytes=0)
            estimate = replace(estimate, feature_bytes=0, sound_bytes=0, heard_bytes=0)
            estimate = replace(estimate, reuses_features=True)
        expected.append(estimate)
        seen.add(identity)
    return expected


def _failure(job: Job, medium: Medium) -> Mapping[str, Any] | None:
    """Return why an earlier run could not use a medium; None if it is tried again."""
    return None if job.config.retry_failed else job.ledger.failure(medium)


def _estimate(job: Job, medium: Medium, header: "_Header | None") -> Estimate:
    index = job.ledger.media_index(medium)
    shown_frames = 0
    failure = header.failure if header is not None else _failure(job, medium)
    if index is None and failure is not None:
        return Estimate(
            seconds=0.0, chunks=0, frames=0, frame_bytes=0, feature_bytes=0, failure=failure
        )
    if index is not None:
        seconds, counts = index.duration, [len(c.times) for c in index.chunks]
        longest = max((c.end - c.start for c in index.chunks), default=0.0)
        pixels = sum(len(c.times) * c.height * c.width for c in index.chunks)
        shown = (index.height, index.width)
        stored = max(((c.height, c.width) for c in index.chunks), key=math.prod, default=(0, 0))
    else:
        assert header is not None
        seconds, shown = header.seconds, header.size
        longest = min(seconds, job.sampling.chunk_seconds)
        shown_frames = max(1, round(seconds * header.rate))
        image = medium.kind == "image"
        stored = (
            job.model.fit("image").stored(*shown) if image else job.model.fit("video").size(*shown)
        )
        counts = [1] if image else [*frame_counts(job.sampling, seconds, header.borders)]
        pixels = sum(counts) * math.prod(stored)
    if medium.kind == "image" and _encoded(job, medium):
        pixels = 0
    bound = job.ledger.variant.bound if medium.kind == "video" else None
    max_frames = bound.of(stored) if bound and counts else None
    seen = [min(count, max_frames or count) for count in counts]
    parts, frames = tile_count(job, medium, stored), sum(seen)
    feature_bytes = sum(
        chunks * job.model.feature_bytes(medium.kind, count, stored, parts)
        for count, chunks in Counter(seen).items()
    )
    return Estimate(
        seconds=seconds,
        chunks=len(counts),
        frames=frames,
        frame_bytes=3 * pixels,
        feature_bytes=feature_bytes,
        sound_bytes=job.model.sound_bytes(seconds) if medium.kind == "video" else 0,
        heard_bytes=job.model.heard_bytes(seconds) if medium.kind == "video" else 0,
        parts=parts,
        chunk_frames=max(seen, default=0),
        stored_frames=max(counts, default=0),
        stored=stored,
        shown=shown,
        shown_frames=shown_frames,
        sound_seconds=longest if medium.kind == "video" else 0.0,
    )


def tile_count(job: Job, medium: Medium, stored: tuple[int, int]) -> int:
    """Return the number of tiles of an image of that height and width, the whole included."""
    tiles, edge = job.config.groups.vectors.tiles, job.model.fit("image").edge
    return 1 if medium.kind == "video" else len(boxes_of(*stored, tiles, edge))


def _encoded(job: Job, medium: Medium) -> bool:
    """Return whether all features of a medium are stored, so that it needs no frames on disk."""
    tasks, kind = job.ledger.tasks([medium]), encoder_of(job.pipeline).writes
    return bool(tasks) and all(task[kind] in job.ledger[kind] for task in tasks)


def frame_counts(
    sampling: Sampling, seconds: float, borders: Sequence[float] = ()
) -> Sequence[int]:
    """Return the number of frames of each chunk of a video of that length, whose chapters have
    these `borders`."""
    inner = (border for border in borders if sampling.chapters and 0 < border < seconds)
    parts = pairwise([0.0, *inner, seconds])
    return [count for start, end in parts for count in _frame_counts(sampling, end - start)]


def _frame_counts(sampling: Sampling, seconds: float) -> Sequence[int]:
    longest = min(sampling.chunk_seconds, SHOT_SECONDS if sampling.shots else math.inf)
    counts, chunks = [], max(1, math.ceil(seconds / longest))
    if sampling.clip_frames:  # what is left is in no chunk, or in one that overlaps
        whole = math.floor(seconds / longest + 1e-6)
        chunks = chunks if whole and sampling.clip_overlap else whole
    for index in range(chunks):
        length = min(longest, max(0.0, seconds - index * longest))
        count = sampling.frames or max(
            sampling.min_frames, math.ceil(length * (sampling.fps or 1.0))
        )
        counts.append(max(1, min(count, sampling.max_frames)))
    return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """A medium's header values, not validated. Wrong values only make the estimate wrong."""

    seconds: float
    size: tuple[int, int]
    """Height and width."""
    rate: float = 0.0
    """Frames per second; 0 for an image."""
    borders: tuple[float, ...] = ()
    """Where its chapters begin and end, in seconds."""
    failure: Mapping[str, Any] | None = None
    """Why the file cannot be used, as the frames stage says it; None: it seems usable."""


def _header(medium: Medium) -> _Header:
    still = medium.kind == "image"
    seconds, rate = (0.0, 0.0) if still else (UNKNOWN_SECONDS, UNKNOWN_RATE)
    unknown = _Header(seconds=seconds, size=UNKNOWN_SIZE, rate=rate)
    if not is_here(Path(medium.path)):  # do not download remote media for a guess
        return unknown
    try:
        if still:
            from stages.frames.image import image_size

            return _Header(seconds=0.0, size=image_size(Path(medium.path)) or UNKNOWN_SIZE)
        from stages.frames.chapters import borders_of
        from stages.frames.media_opening import open_video

        container, stream = open_video(Path(medium.path))
        with container:
            seconds = (container.duration or 0) / 1_000_000 or _shown_seconds(container)
            return _Header(
                seconds=seconds,
                size=(stream.height or UNKNOWN_SIZE[0], stream.width or UNKNOWN_SIZE[1]),
                rate=float(stream.average_rate or UNKNOWN_RATE),
                borders=borders_of(container),
            )
    except MediaError as error:
        message = error.message.replace(medium.path, "the file")
        return replace(
            unknown, failure={"kind": error.kind, "message": message, "hint": error.hint}
        )
    except Exception:  # a broken header may fail in any way; the frames stage reports the cause
        return unknown


def _shown_seconds(container: "InputContainer") -> float:
    """Return the length of what has one frame; UNKNOWN_SECONDS for more frames."""
    first, *more = islice((p for p in container.demux(video=0) if p.size), 2)
    if more or not first.duration or not first.time_base:
        return UNKNOWN_SECONDS
    return float(first.duration * first.time_base)
