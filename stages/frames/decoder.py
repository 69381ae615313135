"""Decodes one video stream forward, and skips the packets that a seek plan leaves out."""

import contextlib
import os
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
from av.video.frame import VideoFrame

from stages.frames.opening import open_video
from stages.frames.seek_plan import END, SeekPlan
from stages.frames.survey import packets
from stages.frames.timeline import Keyframes, VideoPacket
from stages.process.memory_limit import room

MAX_BAD_PACKETS = 1000
"""So many packets in a row that cannot be decoded (some 40 s) are taken for the end of the file;
after that, one try is made at each place that is sought."""
SEEK_PAYS_PACKETS = 64
"""A nearer keyframe is reached sooner by reading on than by seeking."""

MAX_THREADS = 16
"""Each thread of the decoder holds frames; FFmpeg itself takes no more than this unasked."""
MIN_FREE_FRAMES = 4
PIXEL_BYTES = 4
"""Where memory is so short that fewer pictures of so many bytes a pixel find room, none is believed
to be damaged."""
NOT_LANDED = 1 << 62
"""Later than any time in a file."""

_Identity = tuple[int | None, int | None, int]


class _Packets(Iterator[VideoPacket]):
    """An iterator of packets that can take its last packet back. Chaining iterators instead would
    nest one per seek for the whole video."""

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
        """The last packet given to the decoder, counted from 0 in the order of the file."""
        self.bad_packets = 0
        """Packets that could not be decoded so far."""
        self.frames_out = 0
        """Frames handed out since the start of the file; means nothing after a seek."""
        self.keyframes: Keyframes | None = None
        """Where leaps may lead."""
        self.jumps: tuple[tuple[int, int], ...] = ()
        """(packet ordinal, ticks to add to its time and to all later ones)."""
        self.disbelieved: frozenset[int] = frozenset()
        """Ordinals of packets whose time is taken away, and so that of their frames."""
        self.seek_plan: SeekPlan | None = None
        """The route, which tells what need not be decoded; None: everything is."""
        self.landed: int | None = None
        """Ticks of the first whole frame after the last leap, NOWHERE until it has come; None
        without a leap, and where packets after it turned out to be damaged."""
        self.sent: array[int] = array("q")
        """Ticks of the packets decoded since the start while there was no route."""
        self.threads = threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
        """How many threads decode."""
        self._seek_target: int | None = None
        self._first: _Identity | None = None
        self._ready: deque[VideoFrame] = deque()
        self._packets = _Packets(iter(()))
        self._ended = False
        self._skips = False
        self._bad_in_a_row = 0
        self.container, self.stream = open_video(path, threads=self.threads)
        self._begin()

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        self._ready.clear()
        self.container.close()

    def survey_packets(self) -> Iterator[VideoPacket]:
        """Yield all packets, not decoded; `restart` before decoding."""
        for packet in self._packets:
            if self.ordinal < 0:
                self._first = _identity(packet)
            self.ordinal += 1
            yield packet

    def restart(self) -> None:
        """Go back to the start, without opening the file again where it can be sought."""
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
        self.container.close()
        self.container, self.stream = open_video(self.path, threads=self.threads)
        self._begin()

    def pull(self) -> VideoFrame | None:
        """Return the next frame in order of display, None at the end."""
        while not self._ready and not self._ended:
            if self._seek_target is not None:
                self._land(self._seek_target)
            elif (
                self.seek_plan
                and (target := self.seek_plan.seek_target(self.ordinal + 1)) is not None
            ):
                # First out with what the decoder holds.
                self._seek_target = target
                self._decode(None)
            else:
                self._feed()
        if not self._ready:
            return None
        self.frames_out += 1
        frame = self._ready.popleft()
        if self.landed == NOT_LANDED:
            self.landed = frame.pts
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

    def _land(self, target: int) -> None:
        """Go on from a keyframe. Where the file does not lead there, go on from the start, without
        leaps."""
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
                self.stream.codec_context.flush_buffers()
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
        if packet is None or packet.pts != pts:
            self.decode_everything()

    def decode_everything(self) -> None:
        """Start over, and decode everything on the way from now on."""
        if self.seek_plan is not None:
            self.seek_plan.disable()
        self.restart()

    def _begin(self) -> None:
        self._packets = _Packets(packets(self.container, self.stream))
        self._ready.clear()
        self._ended = False
        self._skips = False
        self._seek_target = None
        self.stream.codec_context.skip_frame = "DEFAULT"
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
            # Frames that no other frame refers to need not be decoded to get the others right.
            self.stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
            self._skips = skips

    def _decode(self, packet: "VideoPacket | None") -> None:
        try:
            self._ready.extend(self.stream.codec_context.decode(packet))
            self._bad_in_a_row = 0
        except av.error.EOFError:
            self._ended = True
        except av.error.FFmpegError as error:
            if self._starves():
                raise MemoryError(f"no room for pictures of {self.stream.width} pixels") from error
            # Memory that cannot be had is damage too: the size of a picture was misread.
            self.landed = None
            self.bad_packets += 1
            self._bad_in_a_row += 1
            self._ended = self._ended or self._bad_in_a_row > MAX_BAD_PACKETS

    def _starves(self) -> bool:
        """Return whether this process has hardly any memory left. FFmpeg takes a picture that it
        gets no memory for as one that cannot be decoded, and says no more than that."""
        context = self.stream.codec_context
        return room() < MIN_FREE_FRAMES * context.width * context.height * PIXEL_BYTES


def _identity(packet: VideoPacket) -> _Identity:
    return packet.pts, packet.dts, packet.size
