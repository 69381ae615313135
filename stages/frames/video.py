"""Reads a video file as a sequence of chunks of RGB frames.

The `Reader` gets the frame times from the packets, or by decoding the file once if the packets lack
them. For chunks of fixed length, `plan` selects the frames from these times alone. `chunks` then
passes all of them to the reader, so that it can skip the others. The ends of shots are unknown in
advance, so `shots` decodes every frame and cuts on the way.

Both convert frames to one size and build a chunk only when it is requested, so one chunk is in
memory at a time. Damage is recorded with each chunk, and a chunk without any frame is left out. A
resumed run reports already stored chunks by `recall`.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.frame_fit import FrameFit
from artifacts.schema import WHOLE_SECONDS, ChunkIndex, MediaIndex, Sampling
from artifacts.wording import counted
from stages.frames.chapters import borders_of
from stages.frames.chunk import Chunk, Damage
from stages.frames.frame_converter import FrameConverter, shown_size
from stages.frames.media_opening import no_frames
from stages.frames.reader import Reader
from stages.frames.recording_clock import clock_of
from stages.frames.shots import ShotCutter
from stages.frames.timeline import ChunkPlan, parts_between, plan_chunks, plan_clips, plan_stored
from stages.frames.to_srgb import BT2020, UNSTATED, UNSTATED_BT2020


class Video:
    """An open video file: its size, its length and its chunks."""

    def __init__(self, path: Path, *, threads: int = 0, deinterlace: bool = True) -> None:
        """Open a video; `threads` 0 lets the decoder use all cores. Raises MediaError."""
        self._reader = Reader(path, threads=threads, deinterlace=deinterlace)
        self._damage: dict[int, Damage] = {}
        self._lost: dict[int, float] = {}
        self._last_taken = 0.0
        frame, stream = self._reader.first_frame, self._reader.decoder.stream
        self.height, self.width = shown_size(frame, stream.sample_aspect_ratio)
        """Size in pixels as a player shows it."""
        self.duration = self._reader.timeline.duration
        """Seconds from the first frame to the end of the last."""

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def plan(self, sampling: Sampling) -> list[ChunkPlan]:
        """Plan the frames of all chunks, without decoding but to find the shots of clips."""
        timeline = self._reader.timeline
        borders = borders_of(self._reader.decoder.container) if sampling.chapters else ()
        if not sampling.clip_frames:
            return plan_chunks(timeline, sampling, borders)
        shots = parts_between(timeline, borders)
        if sampling.shots:
            one_frame = Sampling(chunk_seconds=WHOLE_SECONDS, shots=True, frames=1, max_frames=1)
            converter = FrameConverter(self._reader.first_frame, (1, 1))
            cutter = ShotCutter(self._reader, one_frame, converter)
            shots = [(s.plan.start, s.plan.end) for s in cutter.shots(0, timeline.offset)]
            self._reader.passed_over = False
        return plan_clips(timeline, sampling, self._reader.rate, shots)

    def chunks(self, plans: Sequence[ChunkPlan], fit: FrameFit) -> Iterator[Chunk]:
        """Yield the chunks of `plans` in order, decoding on demand.

        A chunk without any decodable frame is left out, with a warning.
        """
        converter = FrameConverter(self._reader.first_frame, fit.size(self.height, self.width))
        last = math.inf
        for at, plan in enumerate(plans):
            if plan.ticks[0] < last:  # the first one, or one that overlaps the one before
                wanted = chain.from_iterable(plan.ticks for plan in plans[at:])
                self._reader.request(array("q", sorted(wanted)))
            last = plan.ticks[-1]
            chunk = self._chunk(plan, converter)
            if chunk is not None:
                yield chunk
            del chunk

    def plan_stored(self, chunks: Sequence[ChunkIndex]) -> list[ChunkPlan]:
        return [plan_stored(self._reader.timeline, chunk) for chunk in chunks]

    def shots(
        self, sampling: Sampling, fit: FrameFit, after: Sequence[ChunkIndex] = ()
    ) -> Iterator[Chunk]:
        """Yield the chunks of shots in order, decoding on demand. Those in `after`, the first
        chunks of the video, are stored already."""
        timeline = self._reader.timeline
        start = after[-1].end if after else timeline.offset
        if start >= timeline.end:
            return
        converter = FrameConverter(self._reader.first_frame, fit.size(self.height, self.width))
        cutter = ShotCutter(self._reader, sampling, converter)
        for shot in cutter.shots(len(after), start):
            pixels = (
                np.stack([kept.pixels for kept in shot.kept])
                if shot.kept
                else converter.allocate(0)
            )
            taken = [kept.ticks for kept in shot.kept]
            damaged = [kept.ticks for kept in shot.kept if kept.damaged]
            chunk = self._made(shot.plan, pixels, taken, damaged, shot.missed)
            del pixels, shot
            if chunk is not None:
                yield chunk
            del chunk

    def recall(self, index: ChunkIndex, damage: Damage) -> None:
        """Take over a chunk that an earlier run has stored."""
        self._damage[index.index] = damage
        self._last_taken = max(self._last_taken, *index.times)

    def warnings(self) -> tuple[str, ...]:
        """Return what was found wrong with the whole file so far, one sentence each.

        Skipped packets are among it: the chunk that meets them depends on where decoding began.
        """
        timeline = self._reader.timeline
        warnings = list(timeline.all_warnings())
        if self._reader.decoder.container.format.name.endswith("_pipe"):
            warnings.append("it is a picture under the name of a video, and is read as one frame")
        first = self._reader.first_frame
        if first.color_primaries == BT2020 and first.color_trc in UNSTATED:
            warnings.append(UNSTATED_BT2020)
        if any(damage.passed_over for damage in self._damage.values()):
            warnings.append("packets could not be decoded and were skipped")
        if self._lost:
            warnings.append(
                f"left out without a decodable frame: {counted(len(self._lost), 'chunk')}, "
                f"the first at {min(self._lost.values()):.2f} s"
            )
        return tuple(warnings)

    def damage(self) -> tuple[str, ...]:
        """Return the damage of all chunks so far, one sentence for each kind."""
        return self._sentences([self._damage[at] for at in sorted(self._damage)], self._last_taken)

    def media_index(self, chunks: Sequence[ChunkIndex]) -> MediaIndex:
        """Return the index of the file, which has no chunks if it is shorter than a clip. Raises
        MediaError if it has no decodable frame."""
        if self._lost and not chunks:
            raise no_frames(self._reader.path)
        decoder = self._reader.decoder
        return MediaIndex(
            kind="video",
            height=self.height,
            width=self.width,
            start=self._reader.timeline.offset,
            duration=self.duration,
            chunks=tuple(chunks),
            warnings=self.warnings(),
            damage=self.damage(),
            clock=clock_of(decoder.container, decoder.stream, self._reader.first_frame),
        )

    def _chunk(self, plan: ChunkPlan, converter: FrameConverter) -> Chunk | None:
        pixels = converter.allocate(len(plan.ticks))
        taken: list[int] = []
        missed: list[int] = []
        damaged: list[int] = []
        for ticks in plan.ticks:
            decoded = self._reader.at(ticks, plan.first, plan.beyond)
            if decoded is None or decoded[0] != ticks:
                missed.append(ticks)
            if decoded is None or (taken and decoded[0] <= taken[-1]):
                continue
            ticks, frame = decoded
            converter.convert(frame, pixels[len(taken)])
            taken.append(ticks)
            if self._reader.returned_damaged:
                damaged.append(ticks)
        return self._made(plan, pixels[: len(taken)], taken, damaged, missed)

    def _made(
        self,
        plan: ChunkPlan,
        pixels: NDArray[np.uint8],
        taken: Sequence[int],
        damaged: Sequence[int],
        missed: Sequence[int],
    ) -> Chunk | None:
        """Build a chunk from decoded frames, and record its damage; None without frames."""
        seconds = self._reader.timeline.seconds
        damage = self._damage[plan.index] = Damage(
            missed=tuple(map(seconds, missed)),
            damaged=tuple(map(seconds, damaged)),
            passed_over=self._reader.passed_over,
        )
        self._reader.passed_over = False
        if not taken:
            self._lost[plan.index] = plan.start
            return None
        index = ChunkIndex(
            index=plan.index,
            start=plan.start,
            end=plan.end,
            times=tuple(map(seconds, taken)),
            height=pixels.shape[1],
            width=pixels.shape[2],
            warnings=self._sentences([damage], seconds(taken[-1])),
        )
        self._last_taken = max(self._last_taken, index.times[-1])
        return Chunk(index=index, pixels=pixels, damage=damage)

    def _sentences(self, damages: Sequence[Damage], last_taken: float) -> tuple[str, ...]:
        """Say the damage of chunks whose last frame is at `last_taken` seconds."""
        sentences = []
        missed = [
            seconds
            for seconds in chain.from_iterable(damage.missed for damage in damages)
            # The missing end of a truncated file has its own warning.
            if seconds < last_taken or not self._reader.timeline.is_short
        ]
        if missed:
            sentences.append(
                f"{len(missed)} of the requested frames could not be decoded, "
                f"the first at {missed[0]:.2f} s"
            )
        damaged = list(chain.from_iterable(damage.damaged for damage in damages))
        if damaged:
            sentences.append(
                f"{counted(len(damaged), 'decoded frame')} damaged, the first at {damaged[0]:.2f} s"
            )
        return tuple(sentences)
