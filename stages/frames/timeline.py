"""Plans from a video's timeline which frames each chunk takes and which packets need no decoding.

A chunk is the interval [k * chunk_seconds, (k + 1) * chunk_seconds) of the time since the first
frame. Times count from time 0 of the file, which may be earlier. A frame belongs to the chunk in
which it begins, and to a later one at whose start it stays on screen for SHOWN_SECONDS, as a slide
does. For each target time the plan takes the chunk's own frame that is on display then. Before the
chunk's first own frame it takes that first one. A single frame is taken at the chunk's middle.

The plan of packets works in groups of pictures: a keyframe and all packets until the next keyframe.
After the decoder received the last requested frame of a group, all packets up to the keyframe of
the next requested frame are skipped. After the very last requested frame, everything is skipped.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, groupby, pairwise
from typing import TypeAlias

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from artifacts.schema import ChunkIndex, Sampling

SHORT_SECONDS = 0.5
"""If the frames end this much before the stated end, the file was truncated."""
DEFAULT_RATE = Fraction(25)
"""Frames per second if a file states neither times nor a rate, as in raw streams."""
CUT_OFF = "truncated: the file ends within its last frame, which is left out"
LONGEST_TICK_SECONDS = 3600
"""A longer tick means that the header's clock is wrong. Frames may stand longer."""

VideoPacket: TypeAlias = "Packet[VideoStream]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyframes:
    """The keyframes where decoding can begin, in file order."""

    pts: "array[int]"
    """Presentation times in ticks, ascending."""
    dts: "array[int]"
    """Decoding times in the file's own ticks, for seeking."""
    ordinals: "array[int]"
    """Packet numbers in the stream, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The display times of the frames of a video."""

    pts: NDArray[np.int64]
    """Ticks of all frames, ascending and unique."""
    time_base: Fraction
    """Seconds per tick."""
    last_ticks: int
    """Duration of the last frame."""
    keyframes: Keyframes | None
    """None if seeking is unreliable."""
    offset: float = 0.0
    """Seconds from time 0 to the first frame. Time 0 is the start of the file, which may begin with
    sound."""
    counted: bool = False
    """Whether decoded frames are identified by their number, not by their own times."""
    demuxed: bool = True
    """Whether packets have the same times as their frames."""
    jumps: tuple[tuple[int, int], ...] = ()
    """(packet ordinal, ticks to add from there on) where the file's clock was reset."""
    disbelieved: frozenset[int] = frozenset()
    """Packets with wrong times, numbered from 0 in file order."""
    announced_seconds: float | None = None
    """Length from the first frame to the end that the file states, if any."""
    warnings: tuple[str, ...] = ()
    """Faults of the file, one sentence each."""

    @property
    def start(self) -> int:
        """Return the ticks of the first frame."""
        return int(self.pts[0])

    def seconds(self, ticks: int) -> float:
        """Convert ticks of the file's clock to seconds since time 0."""
        return self.offset + self.since_first(ticks)

    @property
    def duration(self) -> float:
        """Return the seconds from the first frame to the end of the last."""
        return self.since_first(int(self.pts[-1]) + self.last_ticks)

    @property
    def end(self) -> float:
        """Return the end of the last frame in seconds since time 0."""
        return self.offset + self.duration

    def since_first(self, ticks: int) -> float:
        """Convert ticks of the file's clock to seconds since the first frame."""
        return (ticks - self.start) * self.time_base.numerator / self.time_base.denominator

    def ticks_of(self, frame: VideoFrame, ordinal: int) -> int | None:
        """Return the ticks of a decoded frame, which is the `ordinal`th; None if unknown."""
        if not self.counted:
            return frame.pts
        return int(self.pts[ordinal]) if ordinal < len(self.pts) else None

    def checked(self) -> "Timeline":
        """Return the timeline with a plausible rate, and with the end that the file states."""
        return self.with_plausible_rate().ending_as_announced()

    def with_plausible_rate(self) -> "Timeline":
        """Return itself, or a timeline at a default rate if each tick would last for hours."""
        if self.time_base <= LONGEST_TICK_SECONDS:
            return self
        ticks = int(self.pts[-1]) + self.last_ticks - self.start
        return replace(
            self,
            time_base=len(self.pts) / (DEFAULT_RATE * ticks),
            offset=0.0,
            announced_seconds=None,
            warnings=(
                *self.warnings,
                f"its clock is wrong; {DEFAULT_RATE} frames per second are assumed",
            ),
        )

    def ending_as_announced(self) -> "Timeline":
        """Return itself, or a timeline whose last frame ends where the file says that it does.

        The packet of the last frame may state the duration of another one: with B-frames that of a
        decoding step, and in Matroska the mean of the whole file.
        """
        if self.announced_seconds is None or self.counted:
            return self
        seconds_left = self.announced_seconds - self.since_first(int(self.pts[-1]))
        if seconds_left <= 0 or self.duration - self.announced_seconds <= SHORT_SECONDS:
            return self
        return replace(self, last_ticks=max(1, round(seconds_left / self.time_base)))

    def starting_at(self, ticks: int) -> "Timeline":
        """Return the timeline without the frames before the first decodable one."""
        pts = self.pts[np.searchsorted(self.pts, ticks) :]
        later = replace(self, pts=pts, offset=max(0.0, self.seconds(ticks)))
        if self.announced_seconds is None:
            return later
        return replace(later, announced_seconds=self.announced_seconds - self.since_first(ticks))

    @property
    def is_short(self) -> bool:
        """Return whether the frames end before the stated end."""
        step = self.duration / len(self.pts)
        return (self.announced_seconds or 0.0) - self.duration > max(SHORT_SECONDS, 2 * step)

    def all_warnings(self) -> tuple[str, ...]:
        """Return the faults of the file, a missing end included."""
        if not self.is_short:
            return self.warnings
        missing = (
            f"truncated: its frames end at {self.end:.2f} s of the stated "
            f"{self.offset + (self.announced_seconds or 0.0):.2f} s; read up to there"
        )
        return (*(warning for warning in self.warnings if warning != CUT_OFF), missing)


SHOWN_SECONDS = 0.5
"""A frame that was on display before a chunk belongs to it, too, if it stays this long."""
ROUNDING_SECONDS = 1e-9
"""Times closer than this are equal: far below a tick, far above a float's error."""
FINE_TICKS = 4
"""A clock with at least so many ticks per frame rounds the times of frames; one with fewer counts
frames or slots."""
SLIVER_FRAMES = 1.5
"""A last chunk of at most this many frames is joined to the one before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """The frames of one chunk."""

    index: int
    """Index in the video, from 0."""
    start: float
    """Start in seconds since time 0."""
    end: float
    """End in seconds."""
    first: int
    """Ticks of the earliest frame that may replace an undecodable one."""
    beyond: int
    """Ticks from which on no frame may replace one."""
    ticks: "array[int]"
    """Frames to take, ascending."""


def chunk_count(duration: float, frame_count: int, chunk_seconds: float) -> int:
    """Return how many chunks cover `duration` seconds; a last sliver is not a separate chunk."""
    chunks = max(1, math.ceil((duration - ROUNDING_SECONDS) / chunk_seconds))
    sliver = min(SLIVER_FRAMES * duration / frame_count, chunk_seconds / 2)
    rest = duration - (chunks - 1) * chunk_seconds
    return chunks - 1 if chunks > 1 and rest <= sliver else chunks


def constant_rate(timeline: Timeline, stream: VideoStream) -> Fraction | None:
    """Return the rate at which all frames begin, but for the rounding of their clock: if possible a
    whole number or a rate of film, which headers may state inexactly. None: it varies, or there is
    one frame."""
    times = (timeline.pts - timeline.start) * float(timeline.time_base)
    if len(times) < 2:
        return None
    mean = (len(times) - 1) / times[-1]
    usual = sorted((Fraction(round(mean)), film_rate(mean)), key=lambda rate: abs(rate - mean))
    stated = stream.average_rate, stream.base_rate, stream.guessed_rate
    for rate in filter(None, (*usual, *stated)):
        most = min(float(timeline.time_base), 0.5 / float(rate)) + ROUNDING_SECONDS
        if np.abs(times - np.arange(len(times)) / float(rate)).max() <= most:
            return rate
    return None


def film_rate(fps: float) -> Fraction:
    """Return the nearest rate of film and television, such as 24000/1001."""
    return Fraction(max(1, round(fps * 1.001)) * 1000, 1001)


def exact_rate(fps: float) -> Fraction:
    """Return the rate that is meant: 23.976 is 24000/1001."""
    is_film = abs(film_rate(fps) - Fraction(fps)) < SHORTENED
    return film_rate(fps) if is_film else Fraction(str(fps))


SHORTENED = 0.001
"""By less than this differ rates of film as people write them: 23.976, 29.97, 59.94."""


def plan_clips(
    timeline: Timeline,
    sampling: Sampling,
    rate: Fraction | None,
    parts: Sequence[tuple[float, float]] = (),
) -> list[ChunkPlan]:
    """Plan chunks that are as long as the frames that a trainer takes of each, in every part, a
    shot or a chapter, or in the whole file. What is left of it, if less, is in no chunk, or in one
    that overlaps.

    At a constant rate a chunk is a number of frames, with which the trainer has as many as it
    takes however it counts. Otherwise it is a number of seconds, and the trainer gets a copy of it.
    """
    fps, pts = exact_rate(sampling.clip_fps), timeline.pts
    count = math.ceil(sampling.clip_frames * rate / fps) if rate else 0
    count = max(count, sampling.clip_frames) if rate and sampling.clip_own else count
    seconds = sampling.clip_frames / float(fps)

    def moment(at: int) -> float:
        return timeline.seconds(int(pts[at])) if at < len(pts) else timeline.end

    def later(at: float, clips: int) -> float:
        """Return the time that is so many clips later, or earlier; infinite: beyond the file."""
        if not rate:
            return at + clips * seconds
        end = len(pts) if at >= timeline.end else first_from(timeline, at)
        position = end + clips * count
        return moment(position) if 0 <= position <= len(pts) else math.copysign(math.inf, clips)

    spans: list[tuple[float, float]] = []
    for start, end in parts or [(timeline.offset, timeline.end)]:
        first = start
        while (following := later(start, 1)) <= end + ROUNDING_SECONDS:
            spans.append((start, min(following, end)))
            start = following
        is_left = start < end - ROUNDING_SECONDS and sampling.clip_overlap
        if is_left and (before := later(end, -1)) >= first - ROUNDING_SECONDS:
            spans.append((max(before, first), end))
    return [
        plan_chunk(timeline, sampling, index=index, start=start, end=end)
        for index, (start, end) in enumerate(spans)
    ]


def plan_chunks(
    timeline: Timeline, sampling: Sampling, borders: Sequence[float] = ()
) -> list[ChunkPlan]:
    """Plan every chunk of a video, from its first frame to the end of its last. No chunk crosses
    one of the `borders`."""
    spans = (_cut(timeline, sampling, *part) for part in parts_between(timeline, borders))
    return [
        plan_chunk(timeline, sampling, index=index, start=start, end=end)
        for index, (start, end) in enumerate(chain.from_iterable(spans))
    ]


def parts_between(timeline: Timeline, borders: Sequence[float]) -> list[tuple[float, float]]:
    """Return the parts of a video between ascending borders, in seconds since time 0. A border
    without a frame of its own before the next one is none."""
    starts, first, last = [timeline.offset], 0, len(timeline.pts)
    for border in borders:
        at = first_from(timeline, border)
        if first < at < last and border > starts[-1]:
            starts.append(border)
            first = at
    return [*pairwise([*starts, timeline.end])]


def _cut(
    timeline: Timeline, sampling: Sampling, start: float, end: float
) -> Iterator[tuple[float, float]]:
    """Return the chunks of one part of a video."""
    low, high = positions(timeline, start, end)
    count = chunk_count(end - start, high - low, sampling.chunk_seconds)
    return pairwise([*(start + index * sampling.chunk_seconds for index in range(count)), end])


def plan_chunk(
    timeline: Timeline, sampling: Sampling, *, index: int, start: float, end: float
) -> ChunkPlan:
    """Plan one chunk, from `start` to `end` in seconds since time 0."""
    low, high = positions(timeline, start, end)
    picks = _picks(timeline, sampling, start, end, low, high)
    return ChunkPlan(
        index=index,
        start=start,
        end=end,
        first=int(timeline.pts[low]),
        beyond=int(timeline.pts[high - 1]) + 1,
        ticks=array("q", timeline.pts[picks].tolist()),
    )


def plan_stored(timeline: Timeline, index: ChunkIndex) -> ChunkPlan:
    """Return the plan of a stored chunk, with the frames that it has."""
    low, high = positions(timeline, index.start, index.end)
    return ChunkPlan(
        index=index.index,
        start=index.start,
        end=index.end,
        first=int(timeline.pts[low]),
        beyond=int(timeline.pts[high - 1]) + 1,
        ticks=array("q", [tick_at(timeline, seconds) for seconds in index.times]),
    )


def positions(timeline: Timeline, start: float, end: float) -> tuple[int, int]:
    """Return the position of a chunk's first own frame, and the position after its last one. The
    first one may have begun before the chunk."""
    low = first_from(timeline, start)
    high = len(timeline.pts) if end >= timeline.end else first_from(timeline, end)
    if low >= high:
        return low - 1, low
    held = timeline.seconds(int(timeline.pts[low])) - start
    return (low - 1 if low and held >= SHOWN_SECONDS else low), high


def first_from(timeline: Timeline, seconds: float) -> int:
    """Return the position of the first frame that begins at or after `seconds`."""
    return int(np.searchsorted(timeline.pts, tick_from(timeline, seconds)))


def _picks(
    timeline: Timeline, sampling: Sampling, start: float, end: float, low: int, high: int
) -> NDArray[np.int64]:
    """Return the positions of the frames to take, from `low` to below `high`."""
    step = 1 / sampling.fps if sampling.fps else (end - start) / (sampling.frames or 1)
    targets = max(1, math.ceil((end - start - ROUNDING_SECONDS) / step))
    first = (start + end) / 2 if sampling.frames == 1 else start
    moments = [target_tick(timeline, first + j * step) for j in range(targets)]
    shown = np.searchsorted(timeline.pts, np.array(moments, dtype=np.int64), side="right") - 1
    picks = np.unique(np.clip(shown, low, high - 1))
    min_count = min(sampling.min_frames, high - low)
    if len(picks) < min_count:
        picks = low + _evenly(high - low, min_count)
    if len(picks) > sampling.max_frames:
        picks = picks[_evenly(len(picks), sampling.max_frames)]
    return picks


def _evenly(count: int, keep: int) -> NDArray[np.int64]:
    """Return `keep` different positions out of `count`, evenly spaced from the first on."""
    return np.arange(keep, dtype=np.int64) * count // keep


def tick_at(timeline: Timeline, seconds: float) -> int:
    """Return the last tick at or before `seconds`."""
    rate = timeline.time_base.denominator / timeline.time_base.numerator
    return timeline.start + math.floor((seconds - timeline.offset + ROUNDING_SECONDS) * rate)


def target_tick(timeline: Timeline, seconds: float) -> int:
    """Return the tick at which the frame of a target time is on display. A clock that is finer than
    the frames rounds their times, in Matroska to milliseconds, so the target is rounded, too."""
    length = int(timeline.pts[-1]) + timeline.last_ticks - timeline.start
    is_fine = length >= FINE_TICKS * len(timeline.pts)
    return tick_at(timeline, seconds + float(timeline.time_base) / 2 * is_fine)


def tick_from(timeline: Timeline, seconds: float) -> int:
    """Return the first tick at or after `seconds`."""
    rate = timeline.time_base.denominator / timeline.time_base.numerator
    return timeline.start + math.ceil((seconds - timeline.offset - ROUNDING_SECONDS) * rate)


END = -1
"""Seek target after the last requested frame."""


class SeekPlan:
    """The seek plan of one video for a set of its frames."""

    def __init__(
        self,
        ticks: "array[int]",
        keyframes: Keyframes | None,
        *,
        sent: Iterable[int] = (),
        threads: int = 1,
    ) -> None:
        """`ticks` are the requested frames, ascending. `sent` are the ticks of packets that were
        already decoded.

        A seek must skip at least as many packets as there are threads, because it drains their
        pipeline.
        """
        self._ticks = array("q", (tick for tick, _ in groupby(ticks)))  # two chunks may share one
        self._keys = keyframes
        self._min_skipped = threads
        self._next = 0
        self._groups: array[int] = array("q")
        self._missing: array[int] = array("q")
        if keyframes is not None:
            for key, group in groupby(self._ticks, key=self._group_of):
                self._groups.append(key)
                self._missing.append(sum(1 for _ in group))
        for tick in sent:
            self.needs(tick)

    def needs(self, ticks: int) -> bool:
        """Return whether the frame of a packet that is about to be decoded is requested."""
        at = bisect_left(self._ticks, ticks)
        if at == len(self._ticks) or self._ticks[at] != ticks:
            return False
        if self._keys is not None:
            self._missing[bisect_left(self._groups, self._group_of(ticks))] -= 1
        return True

    def seek_target(self, ordinal: int) -> int | None:
        """Return the position in `keyframes` of the keyframe to continue from instead of packet
        `ordinal`. Return END if no further frame is requested, None to decode that packet."""
        keys = self._keys
        if keys is None:
            return None
        while self._next < len(self._groups) and self._missing[self._next] <= 0:
            self._next += 1
        if self._next == len(self._groups):
            return END
        key = self._groups[self._next]
        if key < 0 or keys.ordinals[key] - ordinal < self._min_skipped:
            return None
        return key

    def disable(self) -> None:
        self._keys = None

    def _group_of(self, ticks: int) -> int:
        assert self._keys is not None
        return bisect_right(self._keys.pts, ticks) - 1
