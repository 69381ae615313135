"""Reads the sound of a media file, chunk by chunk, on the clock of its frames.

How it works:

1. The track is decoded from its start, whichever chunks are requested. After a seek a decoder may
   return other samples: those of an AAC track differed for 20 s.
2. Each decoded frame has a place in seconds since time 0 of the file, as in a player. Gaps become
   zeros, and what overlaps earlier sound is dropped. A few wrong times in a row are passed over.
3. Where the clock of a recording was reset, sound moves by as much as the frames of the video.
4. All of it is mixed down and resampled once, then cut at `round(seconds * rate)`. The chunks put
   together are therefore the whole track. A chunk ends early if the track does.
"""

from array import array
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from math import gcd
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Discard
from numpy.typing import NDArray

from artifacts.errors import MediaError
from artifacts.wording import counted
from stages.frames.media_opening import (
    JUMP_AHEAD_SECONDS,
    JUMP_BACK_SECONDS,
    RESET,
    announced_seconds,
    default_track,
    is_damage,
    open_checked,
    open_video,
    packets,
    survey,
    time_zero,
)
from stages.frames.timeline import SHORT_SECONDS, VideoPacket

Samples = NDArray[np.float32]
"""[samples, channels] of a file, or [samples] of the mix; full scale is 1."""
Block = tuple[int, Samples]
"""Number of its first sample from time 0 on, and the samples."""
MONO = "mono"
BLOCK = 1 << 15
"""Samples that are mixed at a time."""


class MonoResampler:
    """Turns sound of one format into mono samples of another rate.

    It starts where a sample of both rates begins, at or before the requested time.
    """

    def __init__(self, like: AudioFrame, rate: int, start: Fraction) -> None:
        """Take frames like this one. `rate` is that of the output, and `start` is in seconds since
        time 0. Raises FFmpegError."""
        self._format, self._channels = _format_of(like), like.layout.nb_channels
        self._packed = AudioResampler(format="flt")
        self._waiting: list[Samples] = []
        self.rate = like.sample_rate
        common = gcd(self.rate, rate)
        self._step, self._out_step = self.rate // common, rate // common
        """So many samples of the source last as long as so many of the output."""
        steps = int(start * self.rate) // self._step
        self.at = steps * self._step
        """Number of the next sample of the source, from time 0."""
        self._made = steps * self._out_step
        """Number of the next sample of the output, from time 0."""
        self._layout, self._graph = _mixer(like.layout, (self.rate, rate))

    def fits(self, frame: AudioFrame) -> bool:
        return self._format == _format_of(frame)

    def push(self, frame: AudioFrame, skip: int = 0) -> Iterator[Block]:
        """Take the next frame, without its first `skip` samples, and yield what is ready."""
        frame.pts = None
        # Packed: PyAV reads beyond the planes of a frame with eight of them.
        for packed in self._packed.resample(frame):
            samples = np.asarray(packed.to_ndarray(), np.float32).reshape(-1, self._channels)
            yield from self._push(samples[skip:])

    def _push(self, samples: Samples) -> Iterator[Block]:
        self.at += len(samples)
        self._waiting.append(samples)
        # A call for each frame of 20 ms would take most of the time.
        if sum(map(len, self._waiting)) >= BLOCK:
            yield from self._mixed()

    def _mixed(self) -> Iterator[Block]:
        """Mix and resample what waits for it."""
        if not self._waiting:
            return
        samples = np.concatenate(self._waiting)
        self._waiting.clear()
        if self._layout == MONO:
            samples = samples.mean(axis=1)
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=self._layout)
        frame.sample_rate = self.rate
        self._graph.push(frame)
        yield from self._ready()

    def silence(self, count: int) -> Iterator[Block]:
        """Take so many zeros. In the midst of a long silence the output is known."""
        steps = max(0, count - 2 * self.rate) // self._step
        if steps:
            yield from self._zeros(self.rate)
            yield from self._mixed()
            self.at += steps * self._step
            samples_left = steps * self._out_step
            while samples_left:
                yield self._next(np.zeros(min(samples_left, BLOCK), np.float32))
                samples_left -= min(samples_left, BLOCK)
            count -= self.rate + steps * self._step
        yield from self._zeros(count)

    def end(self) -> Iterator[Block]:
        """Yield what the filter still holds."""
        yield from self._mixed()
        self._graph.push(None)
        yield from self._ready()

    def _zeros(self, count: int) -> Iterator[Block]:
        while count > 0:
            yield from self._push(np.zeros((min(count, BLOCK), self._channels), np.float32))
            count -= BLOCK

    def _ready(self) -> Iterator[Block]:
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(frame, AudioFrame)
            samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            yield self._next(samples.mean(axis=1))

    def _next(self, samples: Samples) -> Block:
        first = self._made
        self._made += len(samples)
        return first, samples


def _format_of(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _mixer(layout: AudioLayout, rates: tuple[int, int]) -> tuple[str, Graph]:
    """Return the layout that a filter graph takes, and the graph. `rates` are those of the source
    and the output. Raises FFmpegError."""
    name, channels = layout.name, layout.nb_channels
    if channels > 1:
        try:
            return name, _graph(name, name if channels == 2 else "stereo", rates)
        except (ValueError, av.error.FFmpegError) as error:
            if isinstance(error, MemoryError):
                raise
    return MONO, _graph(MONO, MONO, rates)


def _graph(layout: str, mixed: str, rates: tuple[int, int]) -> Graph:
    """Return a filter graph that changes layout and rate. Raises ValueError or FFmpegError for an
    unknown layout."""
    graph, (source, out) = Graph(), rates
    graph.threads = 1
    clock = Fraction(1, source)
    graph.link_nodes(
        graph.add_abuffer(sample_rate=source, format="flt", layout=layout, time_base=clock),
        graph.add("aresample", f"{out}:rematrix_maxval=1.0"),
        graph.add("aformat", f"sample_fmts=flt:channel_layouts={mixed}"),
        graph.add("abuffersink"),
    ).configure()
    return graph


JITTER_SECONDS = Fraction(1, 50)
"""Times may be off by this much: containers round them, and cameras state them roughly. The first
frame, and one behind damage, is placed exactly."""
LOOKAHEAD = 16
"""Frames whose times are compared before a jump counts as real. A packet of a broadcast states one
time for as many."""
RATES = range(1000, 768_001)
"""Sampling rates in Hz that a file may state."""
FULL_SCALE = 1 << 15
"""Full scale of a sample of 16 bits."""
NO_SOUND = "it has no sound"
SILENT = "its sound is silent"

Pcm: TypeAlias = NDArray[np.int16]
"""[samples], mono."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSound:
    """The sound of one chunk."""

    start: float
    """Start of the chunk in seconds since time 0."""
    rate: int
    """Samples per second."""
    samples: Pcm
    """As many as the chunk is long; fewer if the track ends before, none without a track."""
    track: int
    """Number of the track in the file, from 1; 0: it has none."""
    damaged: tuple[float, ...] = ()
    """Seconds of packets that are damaged. Silence stands for those that cannot be decoded."""
    note: str = ""
    """Why samples are missing; empty: none are, or the track is as long as stated."""

    @property
    def meta(self) -> dict[str, Any]:
        low, high = (int(edge(initial=0)) for edge in (self.samples.min, self.samples.max))
        return {
            "rate": self.rate,
            "samples": len(self.samples),
            "start": self.start,
            "seconds": len(self.samples) / self.rate,
            "track": self.track,
            "peak": max(-low, high),
            "damaged": self.damaged,
            "note": self.note,
        }


def notes_of(metas: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is remarkable in the records of a file's chunks, one sentence each."""
    notes = [*dict.fromkeys(meta["note"] for meta in metas if meta["note"])]
    damaged = [seconds for meta in metas for seconds in meta["damaged"]]
    if damaged:
        notes.append(
            f"damaged in its sound: {counted(len(damaged), 'packet')}, the first at "
            f"{damaged[0]:.2f} s; silence stands for what cannot be decoded"
        )
    if any(meta["samples"] for meta in metas) and not any(meta["peak"] for meta in metas):
        notes.append(SILENT)
    return notes


def sound_of_chunks(
    path: Path, chunks: Sequence[tuple[float, float]], rate: int, track: int = 0
) -> Generator[ChunkSound, None, None]:
    """Yield the sound of these chunks, each (start, end) in seconds since time 0, ascending.

    `track` counts from 1; 0 stands for the track that the file marks as default, else its first.
    Raises MediaError.
    """
    with open_checked(path) as container:
        number, stream = _chosen(container, track)
        source = _Track(path, container, stream) if stream is not None else None
        blocks = source.blocks(rate) if source is not None else iter(())
        spans = [(round(start * rate), round(end * rate)) for start, end in chunks]
        for (start, end), (first, beyond), samples in zip(
            chunks, spans, _cut(blocks, spans), strict=True
        ):
            is_short = len(samples) < beyond - first
            note = NO_SOUND if source is None else source.note * is_short
            damaged = [] if source is None else source.damaged
            within = tuple(seconds for seconds in damaged if start <= seconds < end)
            yield ChunkSound(
                start=start, rate=rate, samples=samples, track=number, damaged=within, note=note
            )


def _chosen(container: InputContainer, track: int) -> tuple[int, AudioStream | None]:
    """Return the number of the track to read, and its stream; 0 and None without a track. Raises
    MediaError."""
    tracks = container.streams.audio
    if not tracks:
        return 0, None
    if track > len(tracks):
        raise MediaError(
            f"sound of track {track} is not there (it has {len(tracks)})",
            kind="no-track",
            hint="Give the number of another one to --sound-track, or leave it out",
        )
    number = track or default_track(tracks) + 1
    return number, tracks[number - 1]


def _cut(blocks: Iterator[Pcm], spans: Sequence[tuple[int, int]]) -> Iterator[Pcm]:
    """Yield the samples of each span (first, beyond) of what the blocks hold together."""
    block, at = np.zeros(0, np.int16), 0
    for first, beyond in spans:
        samples = bytearray()
        while True:
            samples += block[max(0, first - at) : max(0, beyond - at)].tobytes()
            if at + len(block) >= beyond:
                break
            following = next(blocks, None)
            if following is None:
                break
            block, at = following, at + len(block)
        if samples:  # frames may be stated before time 0, where no sound is
            samples[:0] = bytes(block.itemsize * max(0, -first))
        yield np.frombuffer(samples, np.int16)


Placed: TypeAlias = tuple[AudioFrame, Fraction, bool]
"""A frame of the track, its start in seconds since time 0, and whether it begins exactly there."""


class _Track:
    """One sound track of an open file, read once from its start."""

    def __init__(self, path: Path, container: InputContainer, stream: AudioStream) -> None:
        self.note = ""
        """Why the track has no more samples; known at its end."""
        self._path, self._container, self._stream = path, container, stream
        self._zero, self._resets = _clock(path, container)
        self._moved = Fraction()
        """Seconds that the last reset of the clock adds to times."""
        self._place = 0
        """Bytes of the file before the packet that was read last."""
        self._begin: Fraction | None = None
        """Start of the first frame in seconds since time 0; None: nothing was decoded yet."""
        self._end = Fraction()
        """End of the last frame."""
        self._empty, self._decodable = True, False
        """Whether the track has no packet, and whether one was decoded."""
        self.damaged: list[float] = []
        """Seconds of damaged packets."""
        self._dropped = Fraction()
        """Seconds that overlap earlier sound."""
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all

    def blocks(self, rate: int) -> Iterator[Pcm]:
        """Yield the samples from time 0 to the end of the track."""
        at = 0
        for first, block in self._mixed(rate):
            if first > at:
                yield np.zeros(first - at, np.int16)
            fresh = np.nan_to_num(block[max(0, at - first) :])
            at = max(at, first + len(block))
            yield np.rint(fresh * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        self.note = self._end_note()

    def _mixed(self, rate: int) -> Iterator[Block]:
        """Yield the mix of the track. Where its format changes, another resampler goes on."""
        resampler: MonoResampler | None = None
        gap = 0
        for frame, seconds, exact in self._placed():
            exact |= gap < 0  # the frame before was left out, wholly or in part
            if resampler is None:
                resampler = MonoResampler(frame, rate, Fraction())
            elif not resampler.fits(frame):
                yield from resampler.end()
                resampler = MonoResampler(frame, rate, Fraction(resampler.at, resampler.rate))
            gap = round(seconds * resampler.rate) - resampler.at
            if abs(gap) <= (0 if exact else JITTER_SECONDS * resampler.rate):
                gap = 0
            if gap > 0:
                yield from resampler.silence(gap)
            elif gap < 0:
                self._drop(seconds, Fraction(min(-gap, frame.samples), resampler.rate))
            if -gap < frame.samples:
                yield from resampler.push(frame, max(0, -gap))
        if resampler is not None:
            yield from resampler.end()

    def _drop(self, start: Fraction, length: Fraction) -> None:
        """Count sound that overlaps earlier sound; what is more than usual is damage."""
        if start >= 0:
            self._dropped += length
            if self._dropped > SHORT_SECONDS:
                self.damaged.append(float(start))

    def _placed(self) -> Iterator[Placed]:
        """Yield the frames of the track with their places."""
        decoded, ahead = self._decoded(), deque[tuple[AudioFrame, bool]]()
        while True:
            ahead.extend(islice(decoded, LOOKAHEAD - len(ahead)))
            if not ahead:
                return
            frame, exact = ahead.popleft()
            seconds = self._seconds(frame.pts)
            if self._begin is None:
                self._pass_resets()
                self._begin = seconds = self._first([frame, *(other for other, _ in ahead)])
            elif seconds is None or self._is_wrong(seconds, frame, ahead):
                seconds = self._end
            elif (jump := self._jump(seconds)) is not None:
                seconds, exact = seconds + jump, True
            self._end = seconds + _length(frame)
            yield frame, seconds, exact

    def _seconds(self, ticks: int | None) -> Fraction | None:
        """Convert ticks of the track to seconds since time 0; None if they are unknown."""
        if ticks is None or not self._stream.time_base:
            return None
        return ticks * self._stream.time_base - self._zero + self._moved

    def _first(self, frames: Sequence[AudioFrame]) -> Fraction:
        """Return the time of the first of these frames; where others say an earlier one, theirs."""
        begins, before = [], Fraction()
        for frame in frames:
            seconds = self._seconds(frame.pts)
            begins += [seconds - before] if seconds is not None else []
            before += _length(frame)
        own, earliest = begins[0] if begins else Fraction(), min(begins, default=Fraction())
        return own if own - earliest <= JITTER_SECONDS else earliest

    def _is_wrong(
        self, seconds: Fraction, frame: AudioFrame, ahead: Iterable[tuple[AudioFrame, bool]]
    ) -> bool:
        """Return whether the time of a frame is wrong: a later one goes on where the last ended."""
        if abs(seconds - self._end) <= JITTER_SECONDS:
            return False
        end = self._end + _length(frame)
        for other, _ in ahead:
            begin = self._seconds(other.pts)
            if begin is not None and abs(begin - end) <= JITTER_SECONDS:
                return True
            end += _length(other)
        return False

    def _jump(self, seconds: Fraction) -> Fraction | None:
        """Return the seconds that a reset of the clock adds to later times; None: no reset."""
        ahead = seconds - self._end
        if self._resets is None or -JUMP_BACK_SECONDS <= ahead <= JUMP_AHEAD_SECONDS:
            return None
        before, self._moved = self._moved, self._moved - ahead
        if self._resets:
            _, self._moved = self._resets.popleft()
        self._pass_resets()
        return self._moved - before

    def _pass_resets(self) -> None:
        """Apply the resets before the place that was read: a recording may have no sound."""
        while self._resets and self._resets[0][0] <= self._place:
            _, self._moved = self._resets.popleft()

    def _decoded(self) -> Iterator[tuple[AudioFrame, bool]]:
        """Yield each frame, and whether it is the first one or follows damage."""
        exact = True
        for packet in chain(packets(self._container, self._stream), (None,)):
            frames = self._decode(packet)
            if packet is not None:
                self._empty, self._place = False, max(self._place, packet.pos or 0)
                if frames is None or packet.is_corrupt:
                    self._note_damage(packet)
            exact |= frames is None
            for frame in frames or ():
                if frame.samples and frame.sample_rate in RATES:
                    self._decodable = True
                    yield frame, exact
                    exact = False

    def _decode(self, packet: "Packet[AudioStream] | None") -> list[AudioFrame] | None:
        """Return the frames of a packet, or the last ones; None if it is damaged."""
        codec = self._stream.codec_context
        try:
            # PyAV has None for a codec that it was built without, despite its annotation.
            return codec.decode(packet) if codec else None
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            if not is_damage(error, self._path):
                raise
            return None

    def _note_damage(self, packet: "Packet[AudioStream]") -> None:
        """Note a damaged packet. A recording may begin within one, which is none."""
        if self._decodable:
            seconds = self._seconds(packet.pts)
            self.damaged.append(float(self._end if seconds is None else seconds))

    def _end_note(self) -> str:
        """Return why the track ends where it does; empty: as stated."""
        if self._begin is None:
            return NO_SOUND if self._empty else "its sound cannot be decoded"
        if self._resets is not None:  # lengths come from the clock
            return ""
        length = announced_seconds(self._container, self._stream, self._begin + self._zero)
        end = float(self._begin) + (length or 0.0)
        if end - self._end <= SHORT_SECONDS:
            return ""
        return f"its sound ends at {float(self._end):.2f} s of the stated {end:.2f} s"


def _length(frame: AudioFrame) -> Fraction:
    return Fraction(frame.samples, frame.sample_rate)


Reset: TypeAlias = tuple[int, Fraction]
"""Bytes of a file before its clock was reset, and the seconds that this adds to later times."""


def _clock(path: Path, container: InputContainer) -> tuple[Fraction, deque[Reset] | None]:
    """Return time 0 on the clock of a file, and its resets, as for the frames; None where it cannot
    be reset. Raises MediaError."""
    if container.format.name not in RESET or not container.streams.video:
        return time_zero(container), None
    surveyed, stream = open_video(path, threads=1)
    places = array("q")

    def noted() -> Iterator[VideoPacket]:
        for packet in packets(surveyed, stream):
            places.append(max(packet.pos or 0, *places[-1:], 0))
            yield packet

    with surveyed:
        timeline = survey(noted(), surveyed, stream)
        jumps = timeline.jumps if timeline is not None else ()
        base = stream.time_base
        assert base is not None
        return time_zero(surveyed), deque((places[at], ticks * base) for at, ticks in jumps)
