"""Takes the part of a video's sound that belongs to a clip.

Picture and sound of a file have one clock, that of a player. Time 0 of a clip is where its picture
begins, and its sound ends with its picture.

1. The part is decoded once. A clip whose sound is damaged has none: what a decoder makes of damaged
   packets may be loud, and what it leaves out would shift the rest.
2. If MP4 holds the codec, and the packets cover the part without a gap, they are copied. Their
   times are counted in samples, because the clock of Matroska is too coarse. An edit list of
   the track hides what a decoder needs before the start, and the rest of the last packet.
3. Otherwise the sound is encoded. Gaps become silence, and overlaps are dropped: a trainer joins
   what it decodes whatever its times are, or refuses it.
"""

import contextlib
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec import Codec
from av.codec.context import Flags2
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard
from numpy.typing import NDArray

from artifacts.errors import MediaError
from stages.frames.job import TRANSIENT_KINDS
from stages.frames.media_opening import default_track, open_container, packets, time_zero
from stages.frames.timeline import Timeline

AudioPacket: TypeAlias = "Packet[AudioStream]"
AnyPacket: TypeAlias = "Packet[Any]"
Note = dict[str, str]
"""Empty, or why a clip is `silent`."""
REFUSALS = (ValueError, FFmpegError)
"""Errors of sound that a decoder, a filter or an encoder does not take."""

COPIED = frozenset(("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"))
"""Codecs whose packets are copied."""
ENCODER = "aac"
"""Encoder of other sound."""
BLOCKS = 10
"""Blocks a second of sound that is encoded: whole milliseconds."""
RATE = 48_000
"""Samples a second of encoded sound, if the encoder does not take those of the file."""
CHANNEL_BITS, SAMPLE_BITS = 96_000, 4
"""Most bits of encoded sound per channel: a second, and a sample."""
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""Number of channels → layout of encoded sound; other sound becomes stereo."""
LEAD_SECONDS = Fraction(1, 10)
"""Length of sound before a clip that is decoded with it: Opus asks for 0.08 s."""
SLACK_SECONDS = Fraction(1, 100)
"""Times that differ by less from the count of samples are rounded or written carelessly. This is
below the length of a packet, so that a lost one is a gap."""
CLOCK_SECONDS = 1.0
"""A first frame further than this from where its own clock has it is no guide to the sound."""


class Sound:
    """One track of sound of a video file, and the time 0 of its clock."""

    def __init__(
        self, path: Path, container: InputContainer, timeline: Timeline, track: int = 0
    ) -> None:
        """`container` is the open file, with sound. `track` counts from 1; 0 is the one that it
        marks as default, or else its first. `timeline` has the times of its frames."""
        tracks = container.streams.audio
        self.path, self.index = path, tracks[track - 1 if track else default_track(tracks)].index
        self.zero = time_zero(container)
        stated = float(timeline.start * timeline.time_base - self.zero)
        is_clear = timeline.counted or abs(stated - timeline.offset) <= CLOCK_SECONDS
        self.is_timed = is_clear and not timeline.jumps
        """Whether its clock is that of the frames."""


def sound_of(
    path: Path, container: InputContainer, timeline: Timeline, track: int = 0
) -> Sound | None:
    """Return the sound of a video; None without such a track."""
    has_track = len(container.streams.audio) >= max(1, track)
    return Sound(path, container, timeline, track) if has_track else None


def part_of(
    sound: Sound | None, start: float, seconds: Fraction
) -> tuple["SoundPart | None", Note]:
    """Return the sound of a clip that begins at `start` on the file's clock, in seconds since time
    0; or None, and a note why it has none."""
    if sound is None:
        return None, {}
    try:
        if not sound.is_timed:
            raise _no_sound("the clock of the file is reset or wrong")
        zero = sound.zero + Fraction(start).limit_denominator(10**9)
        part = SoundPart(path=sound.path, index=sound.index, zero=zero, seconds=seconds)
        part.measure()
        return part, {}
    except (MediaError, *REFUSALS) as error:
        return None, _note(error)


def write_with(write: Callable[["SoundPart | None"], None], sound: "SoundPart | None") -> Note:
    """Write a clip with its sound, or without, if that cannot be encoded. Return a note then."""
    try:
        write(sound)
    except REFUSALS as error:
        if sound is None:
            raise
        note = _note(error)
        write(None)
        return note
    return {}


def _note(error: Exception) -> Note:
    """Return why a clip has no sound. Raises an error that is not the sound's."""
    if isinstance(error, OSError) or getattr(error, "kind", "") in TRANSIENT_KINDS:
        raise error
    text = f"its sound cannot be decoded and encoded ({error})"
    return {"silent": error.message if isinstance(error, MediaError) else text}


@dataclass(kw_only=True, slots=True)
class SoundPart:
    """The sound of one clip. Positions count its samples from the clip's time 0."""

    path: Path
    index: int
    """Number of the stream in the file."""
    zero: Fraction
    """Time 0 of the clip, in seconds of the file's own clock."""
    seconds: Fraction
    """Length of the clip."""
    rate: int = 0
    """Samples a second."""
    channels: int = 0
    is_copied: bool = False
    """Whether packets are copied."""
    first: int | None = None
    """Time of the first packet to copy, in ticks of the file."""
    at: int = 0
    """Position of its first sample."""
    counts: "array[int]" = field(default_factory=lambda: array("q"))
    """Number of samples of each packet to copy."""

    @property
    def length(self) -> int:
        return round(self.seconds * self.rate)

    def measure(self) -> None:
        """Decode the part, and find out whether its packets can be copied. Raises MediaError."""
        expected: int | None = None
        is_whole = True
        for packet, at, count, frames in self._decoded():
            if expected is None:
                self.first, self.at = packet.pts, at
            is_whole = is_whole and expected in (None, at) and (at < 0 or bool(frames))
            self.counts.append(count)
            expected = at + count
        slack = SLACK_SECONDS * self.rate
        covers = expected is not None and self.at <= 0 and expected >= self.length - slack
        with self._opened() as (_, stream):
            context = stream.codec_context
            codec, self.channels = context.codec.canonical_name, self.channels or context.channels
        if not self.rate or not self.channels:
            raise _no_sound("its sound has no samples")
        is_held = self.first is not None and codec in COPIED
        self.is_copied = is_whole and covers and is_held

    def add_to(self, container: OutputContainer) -> Iterator[AnyPacket]:
        """Add a track to a container, and return its packets."""
        if not self.is_copied:
            return self._encoded(container)
        with self._opened() as (_, stream):
            track = container.add_stream_from_template(stream, opaque=True)
        track.time_base = Fraction(1, self.rate)
        return self._copies(track)

    def _copies(self, track: AudioStream) -> Iterator[AudioPacket]:
        counts, at, has_begun = iter(self.counts), self.at, False
        for packet in self._packets():
            has_begun = has_begun or packet.pts == self.first
            if not has_begun:
                continue
            if (count := next(counts, None)) is None:
                return
            copy = cast(AudioPacket, Packet(bytes(packet)))
            copy.time_base, copy.pts, copy.dts = Fraction(1, self.rate), at, at
            copy.duration, copy.is_keyframe = max(1, min(count, self.length - at)), True
            copy.stream = track
            yield copy
            at += count

    def _encoded(self, container: OutputContainer) -> Iterator[AudioPacket]:
        codec, layout = Codec(ENCODER, "w"), LAYOUTS.get(self.channels, "stereo")
        is_taken = self.rate in (codec.audio_rates or (self.rate,)) and self.rate % BLOCKS == 0
        rate = self.rate if is_taken else RATE
        track = container.add_stream(codec.name, rate=rate, layout=layout)
        assert isinstance(track, AudioStream) and codec.audio_formats
        bits = min(CHANNEL_BITS, SAMPLE_BITS * rate)
        track.codec_context.bit_rate = bits * track.codec_context.channels
        resampler = AudioResampler(
            format=codec.audio_formats[0], layout=layout, rate=rate, frame_size=rate // BLOCKS
        )
        blocks = self._blocks(layout, resampler)
        return (packet for block in blocks for packet in track.encode(block))

    def _blocks(self, layout: str, resampler: AudioResampler) -> Iterator[AudioFrame | None]:
        """Yield all samples of the part for an encoder, and None at their end."""
        at = 0
        for samples in self._placed(layout):
            frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, at, Fraction(1, self.rate)
            at += samples.shape[1]
            yield from resampler.resample(frame)
        yield from resampler.resample(None)
        yield None

    def _placed(self, layout: str) -> Iterator[NDArray[np.float32]]:
        """Yield all samples of the part as (channels, samples): silence where there is no sound."""
        done = 0
        for at, samples in self._arrays(layout):
            yield from self._silence(layout, at - done)
            done = max(done, at)
            taken = samples[:, done - at : max(0, self.length - at)]
            if taken.shape[1]:
                yield np.ascontiguousarray(taken)
                done += taken.shape[1]
        yield from self._silence(layout, self.length - done)

    def _arrays(self, layout: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield what is decoded, of shape (channels, samples), with the position of each array."""
        resampler = AudioResampler(format="fltp", layout=layout, rate=self.rate)
        for _, at, _, frames in self._decoded():
            for frame in frames:
                frame.pts = None
                for resampled in resampler.resample(frame):
                    samples = cast(NDArray[np.float32], resampled.to_ndarray())
                    yield at, samples
                    at += samples.shape[1]

    def _silence(self, layout: str, count: int) -> Iterator[NDArray[np.float32]]:
        channels = next((n for n, name in LAYOUTS.items() if name == layout), 2)
        for at in range(0, count, self.rate):
            yield np.zeros((channels, min(self.rate, count - at)), np.float32)

    def _decoded(self) -> Iterator[tuple[AudioPacket, int, int, list[AudioFrame]]]:
        """Yield the packets of the part and of the lead before it, each with the position of its
        first sample, their number, and its frames. Raises MediaError."""
        expected: int | None = None
        for packet in self._packets():
            own, frames = self._position(packet), self._frames(packet)
            stated = self._position(frames[0]) if frames else own
            count = sum(frame.samples for frame in frames)
            if packet.is_discard:  # the file's own edit list hides it
                frames, count = [], self._samples(packet)
            if not count:
                continue  # refers to packets before the lead, or is shown with the next one
            if stated is None and expected is None:
                raise _no_sound("its sound has no times")
            slack = SLACK_SECONDS * self.rate
            if expected is None or (stated is not None and abs(stated - expected) > slack):
                at = cast(int, stated)
            else:
                at = expected
            if at >= self.length:
                return
            expected = at + count
            if expected > -LEAD_SECONDS * self.rate:
                yield packet, at, count, frames

    def _frames(self, packet: AudioPacket) -> list[AudioFrame]:
        """Decode a packet. Raises MediaError if one of the part is damaged, or is not as those
        before it."""
        try:
            frames = packet.decode()
        except FFmpegError as error:
            if isinstance(error, OSError):
                raise
            at = self._position(packet)
            if at is not None and not -self._samples(packet) < at < self.length:
                return []
            raise _no_sound("its sound is damaged") from error
        for frame in frames:
            self.channels = self.channels or frame.layout.nb_channels
            if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
                raise _no_sound("its sound changes its rate or its channels")
        return frames

    def _position(self, timed: "AudioPacket | AudioFrame") -> int | None:
        if timed.pts is None or timed.time_base is None:
            return None
        return round((timed.pts * timed.time_base - self.zero) * self.rate)

    def _samples(self, packet: AudioPacket) -> int:
        """Return the number of samples that a packet states."""
        return round((packet.duration or 0) * packet.time_base * self.rate)

    def _packets(self) -> Iterator[AudioPacket]:
        """Yield the packets of the track from the lead on, or from the file's start if it cannot be
        sought. Raises MediaError."""
        for seeks in (True, False):
            with self._opened() as (container, stream):
                begin = math.floor((self.zero - LEAD_SECONDS) / cast(Fraction, stream.time_base))
                if seeks:
                    with contextlib.suppress(FFmpegError):
                        container.seek(begin, stream=stream)
                remaining = cast(Iterator[AudioPacket], packets(container, cast(Any, stream)))
                first = next(remaining, None)
                is_there = first is not None and first.pts is not None and first.pts <= begin
                if seeks and not is_there:
                    continue
                if first is not None:
                    yield first
                yield from remaining
                return

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, AudioStream]]:
        """Open the file for its sound. Priming samples are decoded as well: they have times before
        those of the sound."""
        with open_container(self.path) as container:
            stream = container.streams[self.index]
            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
            context = stream.codec_context
            if not isinstance(stream, AudioStream) or not isinstance(context, AudioCodecContext):
                raise _no_sound("this FFmpeg cannot decode its sound")
            context.flags2 |= Flags2.skip_manual
            self.rate = self.rate or context.sample_rate
            yield container, stream


def interleaved(
    container: OutputContainer, pictures: Iterator[AnyPacket], sound: SoundPart | None
) -> Iterator[AnyPacket]:
    """Yield the packets of a clip's pictures and of its sound, whose track is added to the
    container, in the order in which they are decoded."""
    tracks = [pictures] if sound is None else [pictures, sound.add_to(container)]
    return merge(*tracks, key=_decoding_time)


def _decoding_time(packet: AnyPacket) -> Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base


def _no_sound(reason: str) -> MediaError:
    return MediaError(reason, kind="no-sound")
