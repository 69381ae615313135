"""Describes the largest chunks of a job, in pixels and tokens. The module opens no file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from artifacts.schema import MediaKind, Sampling
from artifacts.tiles import LARGE
from artifacts.wording import counted
from flows.core.checkpoint.frame_room import FrameBound
from flows.core.checkpoint.frame_tokens import chunk_frame_tokens, encoder_frames
from flows.core.checkpoint.models import Model
from flows.core.ledger.prompts import added_bytes
from flows.core.ledger.tasks import Medium
from flows.core.ledger.waves import BYTES_PER_TOKEN
from flows.core.plan.sizes import UNKNOWN_SIZE, Estimate, frame_counts

KINDS: tuple[MediaKind, ...] = ("video", "image")
TEMPLATE_TOKENS = 48
"""Maximum tokens that a chat template adds to a prompt, such as a system message."""
STANDARD_CHUNKS = 64
"""Number of chunks assumed without media: more than any batch holds."""
PIXEL_BYTES = 4
"""Bytes per pixel value: processors return 32-bit numbers."""
COPIES = 7
"""Copies of an image in memory while a processor resizes it: 5 to 7 with 27 of 28 processors, 15
with Pix2Struct's, which uses 32-bit numbers (measured with 24 megapixels)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The chunks of one kind in a job, described by the largest one."""

    kind: MediaKind
    chunks: int
    frames: int
    """Frames of the largest chunk."""
    stored: tuple[int, int]
    """Height and width of a stored frame, in pixels."""
    shown: tuple[int, int]
    """Height and width of a frame in the file, in pixels."""
    units: int
    """Pixel values of the model input per chunk."""
    tokens: int
    """Prompt tokens per chunk, image placeholders included."""
    text_tokens: int
    """Prompt tokens per chunk without image placeholders."""
    feature_bytes: int
    """Bytes of the features per chunk in memory, where none are packed."""
    parts: int = 1
    """Number of tiles per image, the whole image included."""
    stored_frames: int = 0
    """Stored frames, if the model sees fewer; 0: the same as `frames`."""
    sound_seconds: float = 0.0
    """Seconds of sound per chunk; 0: none."""
    sound_tokens: int = 0
    """Prompt tokens of this sound, part of `tokens`."""

    def rows(self, batch: int, frames: int = 0) -> int:
        """Return the chunks per batch, at most `batch`, with at most `frames` frames (0: any)."""
        if frames:
            batch = min(batch, max(1, frames // self.frames))
        return max(1, min(batch, self.chunks))

    @property
    def frame_bytes(self) -> int:
        return 3 * max(self.frames, self.stored_frames) * math.prod(self.stored)

    def reading_bytes(self, rows: int) -> int:
        """Return the bytes of frames while `rows` chunks are read. Images are read one by one."""
        if self.kind == "video":
            return rows * self.frame_bytes
        if self.parts > 1:  # as stored, as an array, and the largest tile in the processor
            return 2 * self.frame_bytes + COPIES * min(self.frame_bytes, 3 * LARGE)
        return COPIES * self.frame_bytes

    def with_frames(self, frames: int) -> "Workload":
        """Return the workload with fewer frames per chunk."""
        share, fixed = frames / self.frames, self.text_tokens + self.sound_tokens
        return replace(
            self,
            frames=frames,
            stored_frames=0,
            units=math.ceil(self.units * share),
            tokens=fixed + math.ceil((self.tokens - fixed) * share),
            feature_bytes=math.ceil(self.feature_bytes * share),
        )

    def line(self) -> str:
        """Return a line such as `video chunks of up to 32 frames of 640x360, 2,100 tokens`."""
        height, width = self.stored
        video = f"video chunks of up to {counted(self.frames, 'frame')}"
        what = video if self.kind == "video" else "images"
        prompt_text = f", {self.tokens:,} tokens a prompt" if self.text_tokens else ""
        return f"{what} of {width}x{height}{prompt_text}"


def workloads_of(
    model: Model, media: Sequence[Medium], expected: Sequence[Estimate]
) -> list[Workload]:
    """Return the workloads of a job's media, given an estimate of each medium. For each kind, they
    are the chunk with most encoded pixels and, if it differs, the one with the largest frames."""
    workloads: list[Workload] = []
    for kind, of_kind in _by_kind(media, expected):
        chunks = sum(e.chunks for _, e in of_kind)
        prompt = max((m.prompt for m, _ in of_kind), key=len)
        largest = max(
            (e for _, e in of_kind),
            key=lambda e: e.chunk_frames * math.prod(model.seen_size(kind, e.stored)),
        )
        widest = max((e for _, e in of_kind), key=lambda e: math.prod(e.stored))
        for estimate in {id(e): e for e in (largest, widest)}.values():
            workload = _of_estimate(model, kind, chunks, estimate, prompt)
            parts = max(e.parts for _, e in of_kind)
            workloads.append(replace(workload, parts=parts))
    return workloads


def smallest_workload(
    model: Model, media: Sequence[Medium], expected: Sequence[Estimate]
) -> Workload | None:
    """Return the smallest chunk of a job's media; None without media. A stage that cannot fit it
    cannot start."""
    triples = [(kind, *pair) for kind, of_kind in _by_kind(media, expected) for pair in of_kind]
    if not triples:
        return None
    kind, medium, smallest = min(triples, key=lambda e: e[2].chunk_frames * math.prod(e[2].stored))
    return _of_estimate(model, kind, smallest.chunks, smallest, medium.prompt)


def _of_estimate(
    model: Model, kind: MediaKind, chunks: int, estimate: Estimate, prompt: str
) -> Workload:
    """Return the workload of the longest chunk of a medium."""
    frames = ChunkFrames(estimate.chunk_frames, estimate.stored, estimate.shown)
    workload = workload_of(model, kind, chunks, frames, prompt, estimate.sound_seconds)
    fewer = estimate.stored_frames > estimate.chunk_frames
    return replace(workload, stored_frames=estimate.stored_frames) if fewer else workload


def _by_kind(
    media: Sequence[Medium], expected: Sequence[Estimate]
) -> list[tuple[MediaKind, list[tuple[Medium, Estimate]]]]:
    pairs = [(m, e) for m, e in zip(media, expected, strict=True) if e.chunks]
    groups = [(kind, [(m, e) for m, e in pairs if m.kind == kind]) for kind in KINDS]
    return [(kind, of_kind) for kind, of_kind in groups if of_kind]


def standard_workloads(
    model: Model, sampling: Sampling, prompt: str, bound: FrameBound | None = None
) -> list[Workload]:
    """Return the workload assumed without media: full chunks of a long full HD video, limited by
    `bound`. A model without video support gets the same as images."""
    stored = model.fit("video").size(*UNKNOWN_SIZE)
    frames = max(frame_counts(sampling, 4 * sampling.chunk_seconds))
    frames = min(frames, bound.of(stored) or frames) if bound else frames
    of_chunk, sound = ChunkFrames(frames, stored, UNKNOWN_SIZE), sampling.chunk_seconds
    return [workload_of(model, "video", STANDARD_CHUNKS, of_chunk, prompt, sound)]


class ChunkFrames(NamedTuple):
    """The frames of a chunk. Sizes are (height, width)."""

    number: int
    stored: tuple[int, int]
    shown: tuple[int, int]


def workload_of(
    model: Model,
    kind: MediaKind,
    chunks: int,
    of_chunk: ChunkFrames,
    prompt: str,
    sound_seconds: float = 0.0,
) -> Workload:
    """Build a workload from the model's profile and the frames `of_chunk`. `sound_seconds`: seconds
    of a chunk's sound, if the run uses it."""
    frames, stored, shown = of_chunk
    heard = model.sound_tokens(sound_seconds)
    counted = encoder_frames(model.profile, kind, frames)
    tokens, pixel_bytes = chunk_frame_tokens(
        model.profile, kind, frames, model.seen_size(kind, stored)
    )
    written = max(TEMPLATE_TOKENS, model.profile.tokens_per_prompt)
    written += model.profile.tokens_per_frame * frames if kind == "video" else 0
    # Many tokenizers use one token per digit.
    text = written + len(prompt.encode()) // BYTES_PER_TOKEN + added_bytes(prompt, frames)
    if model.profile.route == "dual":  # dual encoders have no prompt
        text = 0
    return Workload(
        kind=kind,
        chunks=chunks,
        frames=frames,
        stored=stored,
        shown=shown,
        units=math.ceil(counted * pixel_bytes / PIXEL_BYTES),
        tokens=math.ceil(counted * tokens) + heard + text,
        text_tokens=text,
        feature_bytes=model.restored_bytes(kind, frames, stored),
        sound_seconds=sound_seconds if heard else 0.0,
        sound_tokens=heard,
    )
