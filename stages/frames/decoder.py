"""Decodes one video stream forward, and skips the packets that a seek plan leaves out."""

import contextlib
import os
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
from av.video.frame import VideoFrame

from stages.frames.opening import LENIENT_CODECS, decoder_of, open_video
from stages.frames.seek_plan import END, SeekPlan
from stages.frames.survey import packets
from stages.frames.timeline import Keyframes, VideoPacket
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
        """Close the file and release the decoder's memory."""
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
            self.is_damaged |= any(each.is_corrupt for each in (frame, *self._ready))
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
        """Continue at a position in `keyframes`. If the seek does not lead there, start over and
        decode everything."""
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
