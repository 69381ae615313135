"""The stage that makes clips of videos and exact copies of whole files. Runs no model.

The exact copy of a picture is upright, on white, in sRGB of 8 bits.

Every reader shows a clip alike: the frames of a time span as a player shows them, and nothing else.
Readers disagree on edit lists, on frames that B-frames need but nobody sees, on rotation, alpha,
fields and high dynamic range. A trainer that counts frames by the header, or reads them by number,
then trains on other pictures than the captioned ones. So a clip is H.264 in MP4 without B-frames,
its pictures have no edit list, and its header counts the frames that it shows.

1. `positions` gives the span's own frames by their true times. One that was on display before is
   held from the span's start, and the last one to its end, if they stay for a while.
2. They are decoded and encoded. Frames that readers show as they are keep their planes; others are
   converted as for the model, at full size.
3. Their sound is copied or encoded beside them (`clip_sound`).
"""

import contextlib
import math
import os
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from artifacts.containers import open_media
from artifacts.disk.faults import fault_of
from artifacts.errors import EnvironmentFault, MediaError
from artifacts.remote.media_cache import open_local
from stages.frames.clip_sound import SoundPart, interleaved, part_of, sound_of, write_with
from stages.frames.frame_converter import (
    FILTER,
    SQUARE_ENOUGH,
    FrameConverter,
    matrix_of,
    orientation_of,
    shown_size,
)
from stages.frames.image import differs, is_lossless, read_image
from stages.frames.job import ENCODER, TRANSIENT_KINDS, CutItem, CutJob, check_unchanged
from stages.frames.mp4_boxes import drop_edit_list
from stages.frames.reader import Reader
from stages.frames.timeline import SHOWN_SECONDS, VideoPacket, exact_rate, positions, tick_at
from stages.frames.to_srgb import HIGH_DYNAMIC_RANGE, WIDE
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

OPTIONS = {"crf": "16", "preset": "veryfast", "bf": "0", "g": "48"}
"""Options of the encoder; `g` is the most frames from one keyframe to the next."""
X264 = "cpu-independent=1:threads=1"
"""The bytes of a clip depend neither on the processor nor on its cores."""
CLOCK = 90_000
"""Ticks a second of clips whose frames have no constant rate."""
LARGEST_CLOCK = 1_000_000
"""Largest numerator of a rate that is a clip's clock."""
KEPT_FORMATS = frozenset(("yuv420p", "yuvj420p"))
"""Pixel formats whose planes are kept."""
CENTRED = frozenset(("mjpeg", "mpeg1video", "h261", "h263", "flv1", "theora", "vp3"))
"""Codecs whose chroma lies between four brightness samples; that of others lies left."""
UNSTATED, BT601, BT709 = 2, 6, 1
"""Matrices by their numbers in ITU-T H.273."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """The frames of one clip, by their positions in the timeline."""

    low: int
    high: int
    start: float
    """Seconds since time 0 at which the first frame begins, or the span if that one is held."""
    before: Fraction
    """Seconds that the first frame was on display before the span; 0: it begins in it."""
    seconds: Fraction
    """Length of the span."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clock:
    """The times of a clip's frames."""

    base: Fraction
    """Seconds per tick."""
    ticks: tuple[int, ...]
    """Ticks of each frame, from 0, and of the end of the last."""
    shown: tuple[int, ...] = ()
    """Positions of these frames in the timeline; empty: they are all of the span, each once."""

    @property
    def rate(self) -> Fraction:
        """Return the mean number of frames a second, by which the encoder states a level."""
        mean = (len(self.ticks) - 1) / (self.ticks[-1] * self.base)
        return mean.limit_denominator(LARGEST_CLOCK)


class ExactCutter:
    """A source video with known frame times. Adjacent clips are decoded in one pass."""

    def __init__(
        self,
        path: Path,
        spans: Sequence[tuple[float, float]],
        *,
        deinterlace: bool = True,
        sound: bool = False,
        track: int = 0,
        clip: tuple[int, float] = (0, 0.0),
    ) -> None:
        """Open a video to make clips of these spans, in seconds. With `deinterlace`, frames of the
        clips have no combs. With `sound`, clips have the video's sound, of this `track`. Those that
        are timed anew have the frames of `clip` at its rate. Raises MediaError."""
        self._reader = Reader(path, threads=1, deinterlace=deinterlace)
        self._unlike_now = partial(_unlike, deinterlace=deinterlace)
        self._path, self._timeline = path, self._reader.timeline
        frame, stream = self._reader.first_frame, self._reader.decoder.stream
        self._stream_rates = (stream.average_rate, stream.base_rate, stream.guessed_rate)
        self._codec = stream.codec_context.name
        streams = self._reader.decoder.container.streams.video
        covers = sum(bool(s.disposition & Disposition.attached_pic) for s in streams)
        self._is_alone = len(streams) - covers == 1
        aspect = stream.sample_aspect_ratio
        self._stated = stream.frames
        """Number of frames that the header states; 0: none."""
        # FFmpeg keeps columns at the left that it cannot cut without a copy; some readers cut them.
        stated = stream.codec_context.width, stream.codec_context.height
        is_cut = stated != (frame.width, frame.height)
        self._unlike = self._unlike_now(frame, aspect) or "columns that readers cut" * is_cut
        self._is_plain = not self._unlike
        height, width = shown_size(frame, aspect)
        self._converter = FrameConverter(frame, (height, width))
        self._height, self._width = max(2, height // 2 * 2), max(2, width // 2 * 2)
        self._tags = _tags(frame) if self._is_plain else (BT709, int(ColorRange.MPEG))
        self._spans = [self._span(start, end) for start, end in spans]
        self._starts = [start for start, _ in spans]
        opened = self._reader.decoder.container
        self._sound = sound_of(path, opened, self._timeline, track) if sound else None
        self.has_other_track = bool(sound and track and len(opened.streams.audio) > 1)
        """Whether readers of the file may take another track of sound."""
        self._requested_from: int | None = None
        self._clip_frames, self._fps = clip[0], exact_rate(clip[1])

    def close(self) -> None:
        self._reader.close()

    def differs(self) -> str:
        """Return why a reader of the whole file may show other frames; empty if none does."""
        timeline = self._timeline
        if timeline.warnings or timeline.counted or not timeline.demuxed:
            return "damaged"
        if not self._is_alone:
            return "several video streams"
        if self._unlike:
            return self._unlike
        shown = _count_plainly(self._path)
        if shown is None:
            return "damaged"
        is_right = self._stated == shown == len(timeline.pts)
        return "" if is_right else "a frame count that is not what is shown"

    def needs_retiming(self, always: bool) -> bool:
        """Return whether clips are timed anew: the rate varies, or is another one, which only
        counts with `always`."""
        rate = self._reader.rate if self._clip_frames else self._fps
        return rate is None or (always and rate != self._fps)

    def cut(self, index: int, to: Path, *, retimed: bool = False) -> dict[str, Any]:
        """Write the clip of a span to `to` plus a suffix. Return its name, and why it is `silent`
        if the video is not. Raises MediaError or OSError."""
        span, path = self._spans[index], to.with_name(f"{to.name}.mp4")
        is_anew = self.needs_retiming(retimed)
        if is_anew:
            span = replace(span, start=self._starts[index])
        clock = self._new_clock(span) if is_anew else self._clock(span)
        sound, why = part_of(self._sound, span.start, clock.ticks[-1] * clock.base)
        write = partial(self._encode, index, span, clock, path)
        return {"file": path.name, **why, **write_with(write, sound)}

    def _span(self, start: float, end: float) -> _Span:
        timeline = self._timeline
        low, high = positions(timeline, start, end)
        began = timeline.seconds(int(timeline.pts[low]))
        first = start if began < start - float(timeline.time_base) / 2 else began
        return _Span(
            low=low,
            high=high,
            start=first,
            before=Fraction(first - began),
            seconds=Fraction(end - first),
        )

    def _clock(self, span: _Span) -> _Clock:
        """Return the clock of a span: its constant rate, or 90 kHz."""
        pts, base = self._timeline.pts, self._timeline.time_base
        following = int(pts[span.high]) if span.high < len(pts) else None
        end = int(pts[-1]) + self._timeline.last_ticks if following is None else following
        since = int(pts[span.low]) * base + span.before
        times = [
            Fraction(0),
            *(int(t) * base - since for t in (*pts[span.low + 1 : span.high], end)),
        ]
        if span.before or times[-1] - span.seconds >= SHOWN_SECONDS:
            times[-1] = span.seconds
        for rate in filter(None, self._stream_rates):
            length = max(1, round((times[-1] - times[-2]) * rate))
            # The times of a single frame, such as a slide, do not tell its rate; its length does.
            is_known = len(times) > 2 or abs(times[1] - length / rate) <= base
            if (
                rate.numerator <= LARGEST_CLOCK
                and is_known
                and _is_constant(times[:-1], rate, base)
            ):
                step = rate.denominator
                last, length = (len(times) - 2) * step, length * step
                return _Clock(
                    base=Fraction(1, rate.numerator),
                    ticks=(*range(0, last + 1, step), last + length),
                )
        ticks = [0]
        for time in times[1:]:
            ticks.append(max(ticks[-1] + 1, round(time * CLOCK)))
        return _Clock(base=Fraction(1, CLOCK), ticks=tuple(ticks))

    def _new_clock(self, span: _Span) -> _Clock:
        """Return the clock of a span that is timed anew. At a constant rate, each frame is the
        first one from its time on, as trainers take them; otherwise it is the one on display."""
        timeline, fps = self._timeline, self._fps
        if rate := self._reader.rate:
            shown = [span.low + math.ceil(at * rate / fps) for at in range(self._clip_frames)]
        else:
            times = (span.start + at / float(fps) for at in range(self._clip_frames))
            moments = [tick_at(timeline, seconds) for seconds in times]
            shown = (np.searchsorted(timeline.pts, moments, side="right") - 1).tolist()
        return _Clock(
            base=Fraction(1, fps.numerator),
            ticks=tuple(at * fps.denominator for at in range(self._clip_frames + 1)),
            shown=tuple(min(max(at, span.low), span.high - 1) for at in shown),
        )

    def _encode(
        self, index: int, span: _Span, clock: _Clock, path: Path, sound: SoundPart | None
    ) -> None:
        """Decode the frames of a span, and encode them. Raises MediaError."""
        numbers: dict[int, list[int]] = {}
        for at, number in zip(clock.shown or range(span.low, span.high), clock.ticks, strict=False):
            numbers.setdefault(int(self._timeline.pts[at]), []).append(number)
        with _clip(path, sounds=sound is not None) as container:
            stream = container.add_stream(ENCODER, rate=clock.rate)
            assert isinstance(stream, VideoStream)
            self._configure(stream.codec_context, clock)
            stream.time_base = clock.base
            frames = (
                (number, self._planes(frame))
                for ticks, frame in self._frames(index, span)
                for number in numbers.get(ticks, ())
            )
            pictures = _encoded(stream, frames, clock)
            for packet in interleaved(container, pictures, sound):
                container.mux_one(packet)

    def _frames(self, index: int, span: _Span) -> Iterator[tuple[int, VideoFrame]]:
        pts = self._timeline.pts
        if self._requested_from is None or span.low < self._requested_from:
            wanted = {at for later in self._spans[index:] for at in range(later.low, later.high)}
            self._reader.request(array("q", pts[sorted(wanted)].tolist()))
        self._requested_from = span.high
        first, beyond, last = int(pts[span.low]), int(pts[span.high - 1]) + 1, None
        for ticks in pts[span.low : span.high].tolist():
            decoded = self._reader.at(ticks, first, beyond)
            if decoded is not None and (last is None or decoded[0] > last):
                last = decoded[0]
                yield decoded

    def _planes(self, frame: VideoFrame) -> VideoFrame:
        """Return a frame in 4:2:0, of the clip's size, with its matrix and range."""
        height, width = self._height, self._width
        is_alike = not (self._unlike or self._unlike_now(frame, None))
        is_alike = is_alike and _tags(frame) == self._tags
        if is_alike and (frame.height // 2 * 2, frame.width // 2 * 2) == (height, width):
            return _cropped(frame, height, width)
        pixels: NDArray[np.uint8] = self._converter.convert(frame)[:height, :width]
        lacks = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
        image = VideoFrame.from_ndarray(np.pad(pixels, lacks, mode="edge"), format="rgb24")
        matrix, color_range = self._tags
        return image.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601 if matrix == BT601 else Colorspace(matrix),
            dst_color_range=ColorRange(color_range),
            interpolation=FILTER,
            threads=1,
        )

    def _configure(self, codec: VideoCodecContext, clock: _Clock) -> None:
        codec.width, codec.height, codec.pix_fmt = self._width, self._height, "yuv420p"
        codec.time_base, codec.thread_count, codec.max_b_frames = clock.base, 1, 0
        codec.colorspace, codec.color_range = self._tags
        frame, chroma = self._reader.first_frame, self._is_plain and self._codec in CENTRED
        named = (frame.color_primaries, frame.color_trc) if self._is_plain else (BT709, BT709)
        codec.color_primaries, codec.color_trc = named
        codec.options = {**OPTIONS, "x264-params": f"{X264}:chromaloc={int(chroma)}"}


@contextlib.contextmanager
def _clip(path: Path, *, sounds: bool) -> Iterator[OutputContainer]:
    """Open a clip for writing. Its sound, if it `sounds`, has an edit list, and its pictures have
    none. Raises OSError."""
    options = {} if sounds else {"use_editlist": "0"}
    with open_media(
        half := path.with_suffix(".half"), "w", format="mp4", options=options
    ) as container:
        yield container
    if sounds:
        drop_edit_list(half)
    os.replace(half, path)  # a finished clip of a killed run is taken over


def _encoded(
    stream: VideoStream, frames: Iterator[tuple[int, VideoFrame]], clock: _Clock
) -> Iterator[VideoPacket]:
    """Yield the packets of frames with these ticks. Each lasts until the next one, and the last
    until the clip's end. Raises MediaError."""
    codec, waiting = stream.codec_context, deque[VideoPacket]()
    shown: list[int] = []
    for ticks, frame in frames:
        frame.pts, frame.time_base, frame.pict_type = ticks, clock.base, 0
        shown.append(ticks)
        waiting.extend(codec.encode(frame))
        while len(waiting) > 1 or (waiting and waiting[0].pts != shown[-1]):
            yield _lasting(waiting.popleft(), shown, stream)
    if not shown:
        raise MediaError("none of its frames can be decoded", kind="no-cut")
    shown.append(clock.ticks[-1])
    for packet in (*waiting, *codec.encode(None)):
        yield _lasting(packet, shown, stream)


def _lasting(packet: VideoPacket, shown: Sequence[int], stream: VideoStream) -> VideoPacket:
    assert packet.pts is not None
    packet.duration = shown[bisect_right(shown, packet.pts)] - packet.pts
    packet.stream = stream
    return packet


def _count_plainly(path: Path) -> int | None:
    """Return how many frames a reader shows that ends at the first fault; None if it ends there."""
    try:
        with open_media(path) as container:
            damaged = [frame.is_corrupt for frame in container.decode(video=0)]
    except (FFmpegError, IndexError):
        return None
    return None if any(damaged) else len(damaged)


def _is_constant(times: Sequence[Fraction], rate: Fraction, tick: Fraction) -> bool:
    """Return whether frames come at a rate, but for the rounding of their clock."""
    most = min(tick, 1 / (2 * rate) - Fraction(1, CLOCK**2))
    return all(abs(time - at / rate) <= most for at, time in enumerate(times))


def _unlike(frame: VideoFrame, aspect: Fraction | None, *, deinterlace: bool) -> str:
    """Return why readers may show a frame otherwise than the model saw it; empty if they do not."""
    if orientation_of(frame) != 1:
        return "turned"
    if abs(float(aspect or 1) - 1) > SQUARE_ENOUGH:
        return "pixels that are not square"
    if frame.color_trc in HIGH_DYNAMIC_RANGE or frame.color_primaries in WIDE:
        return "other colours"
    if frame.interlaced_frame and deinterlace:
        return "interlaced"
    is_kept = frame.format.name in KEPT_FORMATS and min(frame.height, frame.width) > 1
    return "" if is_kept else f"format {frame.format.name}"


def _tags(frame: VideoFrame) -> tuple[int, int]:
    """Return the matrix and the range with which a frame is converted for the model."""
    other = matrix_of(frame)
    matrix = int(frame.colorspace if other is None else other)
    is_full = frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
    matrix = {0: BT709, UNSTATED: BT601}.get(matrix, matrix)
    return matrix, int(ColorRange.JPEG if is_full else ColorRange.MPEG)


def _cropped(frame: VideoFrame, height: int, width: int) -> VideoFrame:
    """Return a 4:2:0 frame without its last row or column, where their number is odd."""
    cropped = VideoFrame(width, height, "yuv420p")
    for plane, source in zip(cropped.planes, frame.planes, strict=True):
        rows = np.frombuffer(cast(Any, source), np.uint8).reshape(-1, source.line_size)
        out = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)
        out[: plane.height, : plane.width] = rows[: plane.height, : plane.width]
    return cropped


DAMAGED, OTHER_TRACK = "damaged", "another sound track first"
OTHER_RATE = "another rate than the trainer's"
QUALITY = 95


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Make each of the job's clips in its folder. A note under its name holds the file, and why it
    is `silent` if its video is not; or the `error`. Raises EnvironmentFault."""
    job = parse_job(CutJob, job_fields)
    folder = Path(job.folder)
    report.total(len(job.cuts))
    for path, group in groupby(job.cuts, key=lambda cut: cut.path):
        cuts = list(group)
        try:
            with (
                open_local(Path(path)),  # a text would be an address or a file of the user's own
                contextlib.closing(_Source(path, cuts, job)) as source,
            ):
                for at, cut in enumerate(cuts):
                    try:
                        cut_note = source.make(at, folder / cut.name)
                        check_unchanged(Path(path), cut.stamp)
                    except Exception as error:
                        cut_note = _failure(error, path, folder)
                    report.note(**{cut.name: cut_note})
                    report.answered(cut.name, label=source.path.name)
        except Exception as error:  # PyAV lets an IndexError or UnicodeDecodeError through as well
            failure = _failure(error, path, folder)
            report.note(**{cut.name: failure for cut in cuts})


class _Source:
    """One file that clips are made of."""

    def __init__(self, path: str, cuts: Sequence[CutItem], job: CutJob) -> None:
        """Open a file. Raises the errors of opening it."""
        self.path, self._cuts = Path(path), cuts
        check_unchanged(self.path, cuts[0].stamp)
        self._exact: ExactCutter | None = None
        if cuts[0].kind == "video":
            self._exact = ExactCutter(
                self.path,
                [(cut.start, cut.end) for cut in cuts],
                deinterlace=job.deinterlace,
                sound=job.sound,
                track=job.track,
                clip=job.clip,
            )

    def make(self, at: int, to: Path) -> dict[str, Any]:
        """Make a clip, or say that the whole file is one. Raises MediaError, OSError."""
        cut = self._cuts[at]
        if self._exact is None:
            return copy_picture(self.path, to, cut.damaged, always=cut.copied)
        other = OTHER_TRACK * self._exact.has_other_track
        other = other or OTHER_RATE * self._exact.needs_retiming(cut.retimed)
        why = (self._exact.differs() or DAMAGED * cut.damaged or other) if cut.whole else ""
        if cut.whole and not why and not cut.copied:
            return {"plain": True}
        clip = self._exact.cut(at, to, retimed=cut.retimed)
        return {**clip, "why": why, "plain": not why} if cut.whole else clip

    def close(self) -> None:
        if self._exact is not None:
            self._exact.close()


def copy_picture(path: Path, to: Path, damaged: bool, *, always: bool) -> dict[str, Any]:
    """Write an exact copy of a picture to `to` plus a suffix, if readers would show another one, if
    it is `damaged`, or `always`. Return what became of it. Raises MediaError, OSError."""
    why = differs(path) or DAMAGED * damaged
    outcome: dict[str, Any] = {"why": why, "plain": not why}
    if not why and not always:
        return outcome
    _, chunk = read_image(path)
    image, lossless = Image.fromarray(chunk.pixels[0]), is_lossless(path)
    copy = to.with_name(f"{to.name}.{'png' if lossless else 'jpg'}")
    half = copy.with_suffix(".half")
    if lossless:
        image.save(half, "PNG", compress_level=4)
    else:
        image.save(half, "JPEG", quality=QUALITY, subsampling="4:4:4")
    half.replace(copy)  # a finished copy of a killed run is taken over
    return {**outcome, "file": copy.name}


def _failure(error: Exception, path: str, folder: Path) -> dict[str, str]:
    """Return why clips cannot be made of a file. Raises EnvironmentFault for another cause."""
    if isinstance(error, OSError):
        raise fault_of(error, folder) from error
    if isinstance(error, EnvironmentFault):
        raise error
    if isinstance(error, MediaError) and error.kind in TRANSIENT_KINDS:
        raise EnvironmentFault(error.message, hint=error.hint) from error
    return {"error": getattr(error, "message", str(error)).replace(path, "the file")}
