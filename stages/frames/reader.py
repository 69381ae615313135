"""Finds the frames at given times in a video with as little decoding as possible.

The reader decodes one video stream forward, in file order, and skips frames that are neither
requested nor needed as references: it leaves out the packets that a seek plan names. It seeks to a
later keyframe if that skips enough. Its frames equal those of a plain decode of the whole file at
the same times.

Where data is missing, FFmpeg conceals it, and differently for other seeks and numbers of threads.
So the decoder reports damage. A frame behind it is decoded again by one thread, from its own
keyframe on and without skipping, and then depends on the file alone. FFmpeg does not notice every
bit error, mostly in VP8 and HEVC; such frames may still differ. FFmpeg marks the damaged frame
alone, so the reader also counts as damaged what may refer to it: the frames up to the next
keyframe.

An interlaced frame holds two fields, of its even and its odd lines, that were taken one after the
other. What moves looks combed. FFmpeg's filter bwdif makes whole frames of interlaced ones. It
keeps one field and predicts the other from the frames before and after, so a graph of its own for
three frames returns the bytes of one over all frames. Where the first frame of a video is
interlaced, the reader therefore decodes both neighbours of each requested frame, too.
"""

import contextlib
import os
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.frame import PictureType, VideoFrame

from stages.frames.media_opening import (
    LENIENT_CODECS,
    decoder_of,
    no_frames,
    open_video,
    packets,
    survey,
    watch,
)
from stages.frames.timeline import END, Keyframes, SeekPlan, Timeline, VideoPacket, constant_rate
from stages.process.memory_limit import room

MAX_BAD_PACKETS = 1000
"""After so many undecodable packets in a row (some 40 s), the end of the file is assumed. From then
on, one packet is tried after each seek."""
LOOKAHEAD = 4
"""Frames that are decoded before an earlier one is returned, where damage is only marked: frames
with bidirectional references are shown before the damaged frame that they refer to."""
MAX_BAD_BEHIND = 16
"""After so many undecodable packets in a row, none is tried behind the group of pictures that is
decoded carefully."""
SEEK_PAYS_PACKETS = 64
"""A keyframe that is nearer than this is reached faster by reading than by seeking."""

MAX_THREADS = 16
"""Each decoder thread holds frames; FFmpeg itself uses at most this many by default."""
MIN_FREE_FRAMES = 4
PIXEL_BYTES = 4
"""If there is no room for MIN_FREE_FRAMES frames with so many bytes per pixel, a decoding error
counts as out of memory."""
NOT_LANDED = 1 << 62
"""Later than any time in a file."""

_Identity = tuple[int | None, int | None, int]


class _Packets(Iterator[VideoPacket]):
    """An iterator of packets that can take its last packet back. Chained iterators would nest once
    per seek."""

    def __init__(self, source: Iterator[VideoPacket]) -> None:
        self._source = source
        self._held: VideoPacket | None = None

    def __next__(self) -> VideoPacket:
        packet, self._held = self._held, None
        return next(self._source) if packet is None else packet

    def put_back(self, packet: VideoPacket) -> None:
        self._held = packet


class Decoder:
    """One container and one decoder, used by one thread at a time."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Open a video; `threads` 0 takes all cores. Raises MediaError."""
        self.path = path
        self.ordinal = -1
        """Number of the last packet that was decoded, from 0 in file order."""
        self.bad_packets = 0
        """Packets that could not be decoded so far."""
        self.frames_out = 0
        """Frames returned since the start of the file; meaningless after a seek."""
        self.keyframes: Keyframes | None = None
        """Possible seek targets."""
        self.jumps: tuple[tuple[int, int], ...] = ()
        """(packet ordinal, ticks to add to its time and to all later ones)."""
        self.disbelieved: frozenset[int] = frozenset()
        """Ordinals of packets whose times are wrong and therefore dropped."""
        self.seek_plan: SeekPlan | None = None
        """Plan of packets that need no decoding; None: all are decoded."""
        self.landed: int | None = None
        """Ticks of the first frame after the last seek; NOT_LANDED until it is decoded. None
        without a seek, and after damaged packets."""
        self.strict = True
        """Whether damage is reported. If not, one thread conceals it."""
        self.is_damaged = False
        """Whether a frame since the file was opened may differ from what one thread decodes."""
        self.sent: array[int] = array("q")
        """Ticks of the packets decoded since the start without a seek plan."""
        self.threads = threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
        """Number of decoder threads."""
        self._seek_target: int | None = None
        self._first: _Identity | None = None
        self._ready: deque[VideoFrame] = deque()
        self._packets = _Packets(iter(()))
        self._ended = False
        self._skips = False
        self._bad_in_a_row = 0
        self._entry: int | None = None
        self._entry_failures = 0
        self.group_end: int | None = None
        """Ordinal of the packet behind the requested group of pictures; None: unknown."""
        self.container, self.stream = open_video(path, threads=self.threads, strict=True)
        self._codec = decoder_of(self.stream)
        self._begin()

    def close(self) -> None:
        self._ready.clear()
        self.container.close()

    def survey_packets(self) -> Iterator[VideoPacket]:
        """Yield all packets without decoding; call `restart` before decoding."""
        for packet in self._packets:
            if self.ordinal < 0:
                self._first = _identity(packet)
            self.ordinal += 1
            yield packet

    def restart(self) -> None:
        """Return to the start, by seeking if possible, else by opening the file again."""
        self._bad_in_a_row = 0
        self.landed = None
        self.sent = array("q")
        if self._first is not None:
            with contextlib.suppress(av.error.FFmpegError):
                pts, dts, _ = self._first
                self.container.seek(
                    next((t for t in (dts, pts) if t is not None), 0), stream=self.stream
                )
                self._begin()
                packet = next(self._packets, None)
                if packet is not None and _identity(packet) == self._first:
                    self._packets.put_back(packet)
                    return
        self.reopen(strict=self.strict)

    def reopen(self, *, strict: bool) -> None:
        """Open the file again, with a decoder that remembers nothing."""
        self.container.close()
        threads = self.threads if strict else 1
        self.container, self.stream = open_video(self.path, threads=threads, strict=strict)
        self._codec = decoder_of(self.stream)
        self.strict, self.is_damaged, self.landed = strict, False, None
        self.bad_packets, self._bad_in_a_row, self.group_end = 0, 0, None
        self.sent = array("q")
        self._begin()

    def pull(self) -> VideoFrame | None:
        """Return the next frame in display order; None at the end."""
        while len(self._ready) <= self._lookahead and not self._ended:
            if self._seek_target is not None:
                if self._ready:  # frames before the seek
                    break
                self.land(self._seek_target)
            elif (
                self.seek_plan
                and (target := self.seek_plan.seek_target(self.ordinal + 1)) is not None
            ):
                # Drain the decoder first.
                self._seek_target = target
                self._decode(None)
            else:
                self._feed()
        if not self._ready:
            self.is_damaged |= self._entry_failures > 0
            return None
        self.frames_out += 1
        frame = self._ready.popleft()
        if self.landed == NOT_LANDED:
            self.landed = frame.pts
        if self._entry is not None and (frame.pts is None or frame.pts >= self._entry):
            self.is_damaged |= self._entry_failures > 0 and frame.pts != self._entry
            self._entry, self._entry_failures = None, 0
        if self._entry is None:
            self.is_damaged |= any(ready.is_corrupt for ready in (frame, *self._ready))
        return frame

    def _feed(self) -> None:
        packet = next(self._packets, None)
        if packet is None:
            self._ended = True
            self._decode(None)
        else:
            self.ordinal += 1
            self._prepare(packet)
            self._decode(packet)

    def land(self, target: int) -> None:
        """Continue at a position in `keyframes`; if no seek leads there, decode everything."""
        self._seek_target = None
        if target == END:
            self._ended = True
            return
        assert self.keyframes is not None
        ordinal, pts = self.keyframes.ordinals[target], self.keyframes.pts[target]
        try:
            if ordinal - self.ordinal > SEEK_PAYS_PACKETS:
                self.container.seek(self.keyframes.dts[target], stream=self.stream)
                self._begin()
            else:
                self._codec.flush_buffers()
        except av.error.FFmpegError:
            self.decode_everything()
            return
        for packet in self._packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= pts:
                self._packets.put_back(packet)
                break
        else:
            packet = None
        self.ordinal = ordinal - 1
        self.landed = NOT_LANDED
        self._entry, self._entry_failures = pts, 0
        if packet is None or packet.pts != pts:
            self.decode_everything()

    def decode_everything(self) -> None:
        """Start over, without any further seeks."""
        if self.seek_plan is not None:
            self.seek_plan.disable()
        self.restart()

    def _begin(self) -> None:
        marks = self._codec.name in LENIENT_CODECS
        self._lookahead = LOOKAHEAD if marks and self.strict and self.threads > 1 else 0
        self._packets = _Packets(packets(self.container, self.stream))
        self._ready.clear()
        self._ended = False
        self._skips = False
        self._seek_target = self._entry = None
        self._entry_failures = 0
        self._codec.skip_frame = "DEFAULT"
        self.frames_out = 0
        self.ordinal = -1

    def _prepare(self, packet: VideoPacket) -> None:
        if self.ordinal in self.disbelieved:
            packet.pts = None
        if packet.pts is None:
            return
        added = next((add for at, add in reversed(self.jumps) if at <= self.ordinal), 0)
        if added:
            packet.pts += added
        if self.seek_plan is None:
            self.sent.append(packet.pts)
            return
        skips = not self.seek_plan.needs(packet.pts)
        if skips != self._skips:
            # Frames that no other frame refers to need no decoding.
            self._codec.skip_frame = "NONREF" if skips else "DEFAULT"
            self._skips = skips

    def _decode(self, packet: "VideoPacket | None") -> None:
        try:
            self._ready.extend(self._codec.decode(packet))
            self._bad_in_a_row = 0
        except av.error.EOFError:
            self._ended = True
        except av.error.FFmpegError as error:
            if self._starves():
                raise MemoryError(f"no room for frames {self.stream.width} pixels wide") from error
            # An impossible allocation is damage, too: the frame size was misread.
            self.bad_packets += 1
            if self.strict and self._entry is not None:
                # Frames shown before this keyframe may refer to frames that the seek skipped.
                self._entry_failures += 1
            else:
                self.landed, self.is_damaged = None, True
            self._bad_in_a_row += 1
            is_behind = self.group_end is not None and self.ordinal >= self.group_end
            limit = MAX_BAD_BEHIND if is_behind else MAX_BAD_PACKETS
            self._ended = self._ended or self._bad_in_a_row > limit

    def _starves(self) -> bool:
        """Return whether this process has hardly any memory left. FFmpeg reports a failed frame
        allocation as an undecodable packet."""
        context = self._codec
        return room() < MIN_FREE_FRAMES * context.width * context.height * PIXEL_BYTES


def _identity(packet: VideoPacket) -> _Identity:
    return packet.pts, packet.dts, packet.size


UNKNOWN_CLOCK = Fraction(1, 25)
"""Seconds per tick for a graph, where the frame does not say; it changes no pixel."""


def deinterlaced(
    frame: VideoFrame, before: VideoFrame | None = None, after: VideoFrame | None = None
) -> VideoFrame:
    """Return a frame that is marked as interlaced without combs, from the frames next to it; itself
    if it is not marked, or too small for the filter. None: there is no such frame."""
    if not frame.interlaced_frame:
        return frame
    before, after = (near if near and _alike(near, frame) else None for near in (before, after))
    if before is None and after is None:
        after = frame  # at the end, the filter would take the other field as it is
    # The filter predicts its first marked frame from that frame alone. An unmarked one does not
    # count, so then the frame itself goes ahead.
    ahead = [frame] if before and not before.interlaced_frame else []
    fed = [*ahead, *filter(None, (before, frame, after))]
    graph, clock = Graph(), frame.time_base or UNKNOWN_CLOCK
    graph.threads = 1
    try:
        nodes = (
            graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base=str(clock),
                colorspace=str(int(frame.colorspace)),
                range=str(int(frame.color_range)),
            ),
            graph.add("bwdif", "mode=send_frame:deint=interlaced"),
            graph.add("buffersink"),
        )
        graph.link_nodes(*nodes).configure()
        for fed_frame in fed:
            graph.push(fed_frame)
        if after is None:
            graph.push(None)
        for _ in range(len(fed) - (after is not None)):
            frame_out = graph.vpull()
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return frame
    frame_out.pts, frame_out.time_base = frame.pts, clock
    return frame_out


def _alike(one: VideoFrame, other: VideoFrame) -> bool:
    """Return whether a graph takes both frames."""
    return (one.width, one.height, one.format.name) == (
        other.width,
        other.height,
        other.format.name,
    )


MAX_RETURNS = 16
"""After so many damaged stretches, one thread decodes the rest of the file."""


class Reader:
    """One open video with known frame times."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 0,
        timeline: Timeline | None = None,
        deinterlace: bool = True,
    ) -> None:
        """Open a video and read its frame times, unless `timeline` is that of another reader of it;
        `threads` 0 uses all cores. With `deinterlace`, `at` returns interlaced frames without
        combs. Raises MediaError."""
        self.path = path
        self.decoder = Decoder(path, threads=threads)
        self.passed_over = False
        """Whether packets before a returned frame could not be decoded; its user resets it."""
        self.returned_damaged = False
        """Whether the frame that `at` returned last is damaged, or may refer to a damaged one."""
        self._damaged: dict[int, bool] = {}
        """Ticks of the last two decoded frames → whether they are damaged."""
        self._damaged_group: int | None = None
        """Group of pictures in which references are damaged."""
        self._ticks = array("q")
        self._requested = False
        self._group: int | None = None
        self._returns = 0
        self._next: tuple[int, VideoFrame] | None = None
        self._before: tuple[int, VideoFrame] | None = None
        self._deinterlaces = deinterlace
        self._around: dict[int, VideoFrame | None] = {}
        """Ticks → frame: the last requested one and the one after it, which is needed again if
        every frame is requested."""
        try:
            self.timeline, self.first_frame = self._learn(timeline)
            self._needs_neighbours = deinterlace and self.first_frame.interlaced_frame
        except BaseException:
            self.close()
            raise

    @cached_property
    def rate(self) -> Fraction | None:
        """Return the constant rate of the frames; None: it varies."""
        return constant_rate(self.timeline, self.decoder.stream)

    def close(self) -> None:
        self._next = self._before = None
        self._around = {}
        self.decoder.close()

    def request(self, ticks: "array[int]") -> None:
        """Announce the frames that `at` will return, ascending, so that others can be skipped."""
        if self._needs_neighbours:
            pts, self._around = self.timeline.pts, {}
            next_to = np.searchsorted(pts, ticks)[:, None] + np.arange(-1, 2)
            times = pts[next_to.clip(0, len(pts) - 1)]
            ticks = array("q", np.union1d(times, ticks).tolist())
        if self._requested:
            self._forget()
            self._group = None
            self.decoder.reopen(strict=True)
        self._requested, self._ticks = True, ticks
        self._plan(ticks)

    def _forget(self) -> None:
        self.decoder.seek_plan = self._next = self._before = None

    def _plan(self, ticks: "array[int]") -> None:
        if self.timeline.demuxed:
            decoder = self.decoder
            decoder.seek_plan = SeekPlan(
                ticks, self.timeline.keyframes, sent=decoder.sent, threads=decoder.threads
            )

    def at(self, ticks: int, first: int, beyond: int) -> tuple[int, VideoFrame] | None:
        """Return the frame of `ticks`. If it cannot be decoded, return the last frame before it
        from `first` on, or the next one before `beyond`; else None. No time may be before the one
        of the last call."""
        if not self._needs_neighbours:
            decoded = self._marked(ticks, first, beyond)
            if decoded is None or not self._deinterlaces:
                return decoded
            return decoded[0], deinterlaced(decoded[1])
        pts = self.timeline.pts
        at = int(np.searchsorted(pts, ticks))
        before = self._exactly(int(pts[at - 1])) if at else None
        decoded = self._marked(ticks, first, beyond)
        if decoded is None or decoded[0] != ticks:
            return decoded and (decoded[0], deinterlaced(decoded[1]))
        self._around[ticks] = decoded[1]
        after = self._exactly(int(pts[at + 1])) if at + 1 < len(pts) else None
        self._around = {t: frame for t, frame in self._around.items() if t >= ticks}
        return ticks, deinterlaced(decoded[1], before, after)

    def _exactly(self, ticks: int) -> VideoFrame | None:
        """Return the frame of `ticks`, maybe one that `at` has passed; None: it is undecodable."""
        if ticks not in self._around:
            decoded = self._at(ticks, ticks, ticks + 1)
            self._around[ticks] = decoded and decoded[1]
        return self._around[ticks]

    def _marked(self, ticks: int, first: int, beyond: int) -> tuple[int, VideoFrame] | None:
        decoded = self._at(ticks, first, beyond)
        self.returned_damaged = decoded is not None and self._damaged.get(decoded[0], False)
        return decoded

    def _at(self, ticks: int, first: int, beyond: int) -> tuple[int, VideoFrame] | None:
        """Do the same with frames as they are decoded."""
        if self._group is not None and self._group != self._group_of(ticks):
            self._leave_damage(ticks)
        following = self._find(ticks)
        if self._group is None and (self.decoder.is_damaged or not self._is_at(ticks)):
            self._decode_carefully(ticks)
            following = self._find(ticks)
        self.passed_over |= self._group is not None and self.decoder.bad_packets > 0
        if self._before is not None and first <= self._before[0] <= ticks:
            return self._before
        return following if following is not None and following[0] < beyond else None

    def _find(self, ticks: int) -> tuple[int, VideoFrame] | None:
        """Advance to the last frame up to `ticks`, and return the frame after it."""
        following = self._go_to(ticks)
        landed = self.decoder.landed
        if landed is not None and landed > ticks and not self._is_at(ticks):
            # Decoding cannot start at that keyframe; earlier frames are needed.
            self._next = self._before = None
            self.decoder.decode_everything()
            following = self._go_to(ticks)
        return following

    def _decode_carefully(self, ticks: int) -> None:
        """Go to the keyframe of `ticks` with one thread that conceals damage."""
        group = self._group = self._group_of(ticks)
        self._forget()
        self.decoder.reopen(strict=False)
        if group < 0 or self.decoder.keyframes is None:
            return
        self.decoder.land(group)
        if group + 1 < len(self.decoder.keyframes.ordinals):
            self.decoder.group_end = self.decoder.keyframes.ordinals[group + 1]
        self._peek()
        landed = self.decoder.landed
        if landed is not None and landed > self.decoder.keyframes.pts[group]:
            # Decoding cannot start at this file's keyframes.
            self._forget()
            self.decoder.keyframes = None
            self._group = -1
            self.decoder.reopen(strict=False)

    def _leave_damage(self, ticks: int) -> None:
        """Go on behind a damaged stretch, with all threads if there were few such stretches."""
        self._returns += 1
        if self._returns > MAX_RETURNS:
            self._decode_carefully(ticks)
            return
        self._group = None
        self._forget()
        self.decoder.reopen(strict=True)
        self._plan(self._ticks[bisect_left(self._ticks, ticks) :])

    def _group_of(self, ticks: int) -> int:
        """Return the position of the last keyframe up to `ticks`; -1 for the start of the file."""
        keyframes = self.decoder.keyframes
        return -1 if keyframes is None else bisect_right(keyframes.pts, ticks) - 1

    def _go_to(self, ticks: int) -> tuple[int, VideoFrame] | None:
        """Advance to the last frame up to `ticks`, and return the frame after it."""
        while not self._is_at(ticks) and (following := self._peek()) and following[0] <= ticks:
            self._before, self._next = following, None
        return self._next

    def _is_at(self, ticks: int) -> bool:
        return self._before is not None and self._before[0] == ticks

    def _peek(self) -> tuple[int, VideoFrame] | None:
        if self._next is None:
            count = self.decoder.frames_out
            frame = self.decoder.pull()
            if frame is not None:
                ticks = self.timeline.ticks_of(frame, count)
                # Skip a frame without a time if the other frames have one.
                self._next = (self.timeline.start - 1 if ticks is None else ticks, frame)
                self._note_damage(*self._next)
        return self._next

    def _note_damage(self, ticks: int, frame: VideoFrame) -> None:
        """Note whether a decoded frame is damaged. No other group of pictures refers to it, and no
        frame to one with bidirectional references."""
        group = self._group_of(ticks)
        if frame.key_frame or group != self._damaged_group:
            self._damaged_group = None
        if frame.is_corrupt and frame.pict_type != PictureType.B:
            self._damaged_group = group
        before = self._before[0] if self._before else ticks
        self._damaged = {
            before: self._damaged.get(before, False),
            ticks: frame.is_corrupt or self._damaged_group is not None,
        }

    def _learn(self, known: Timeline | None) -> tuple[Timeline, VideoFrame]:
        decoder, timeline = self.decoder, known
        if known is None:
            timeline = survey(decoder.survey_packets(), decoder.container, decoder.stream)
            decoder.restart()
        if timeline is not None:
            decoder.jumps, decoder.disbelieved = timeline.jumps, timeline.disbelieved
        first = decoder.pull()
        if first is None or decoder.is_damaged:
            decoder.reopen(strict=False)
            first = decoder.pull()
        if first is None:
            raise no_frames(self.path)
        if timeline is not None and timeline.demuxed and first.pts is not None:
            at = bisect_left(timeline.pts, first.pts)
            if at < len(timeline.pts) and timeline.pts[at] == first.pts:
                decoder.keyframes = timeline.keyframes
                if decoder.strict:
                    self._next = (first.pts, first)
                    self._note_damage(*self._next)
                else:
                    decoder.reopen(strict=True)
                return timeline.checked().starting_at(first.pts), first
        # The packets have no times, or other times than their frames.
        decoder.jumps, decoder.disbelieved = (), frozenset()
        decoder.reopen(strict=True)
        if known is not None:
            return known, first
        watched = watch(iter(decoder.pull, None), decoder.container, decoder.stream)
        if decoder.is_damaged:
            decoder.reopen(strict=False)
            watched = watch(iter(decoder.pull, None), decoder.container, decoder.stream)
        decoder.reopen(strict=True)
        return watched.checked().starting_at(watched.start), first
