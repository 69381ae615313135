"""Opens a media file for its video, reads its frame times, and explains why a file cannot be used.

Frame times and keyframes come from the packets of the video, or from decoding it once.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from artifacts.containers import open_media
from artifacts.disk.regular_files import open_regular
from artifacts.errors import MediaError
from artifacts.wording import counted
from stages.frames.formats import OPTIONS, check_file
from stages.frames.frame_recorder import step
from stages.frames.mp4_boxes import has_no_base_layer
from stages.frames.timeline import (
    CUT_OFF,
    DEFAULT_RATE,
    SHORT_SECONDS,
    Keyframes,
    Timeline,
    VideoPacket,
)
from stages.process.memory_limit import memory_was_short

S = TypeVar("S", VideoStream, AudioStream)
ISO_BRANDS_AT = slice(4, 8)
"""Position of `ftyp` in an MP4 or MOV file."""

STRICT = {"err_detect": "explode"}
"""Decoder option with which damage is an error."""
LENIENT_CODECS = frozenset(("h264",))
"""Codecs whose decoder marks concealed frames. With STRICT, a seek into an open group of pictures
is an error, too."""
THREAD_TYPES: dict[str, Literal["SLICE"]] = {"vp8": "SLICE"}
"""Kind of decoder threads, if not the decoder's own choice. Of 42 damaged VP8 files, 36 had other
frames with frame threads, without any error; none had with slice threads."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codec → its decoder that decodes the transparency of a WebM track, as FFmpeg's own do not."""

READ_BYTES = 1 << 20
MAX_PIXELS = 1 << 27
"""Most pixels per frame, 16384 x 8192; no camera has more. A decoder holds several frames."""


def is_damage(error: av.error.FFmpegError, path: Path) -> bool:
    """Return whether the content of the file is at fault, and not the disk or memory.

    For broken content FFmpeg also reports I/O errors and impossible allocations. So the file is
    read once more, and the memory of this process is checked.
    """
    if isinstance(error, MemoryError):
        return not memory_was_short()
    if not isinstance(error, OSError):
        return True
    try:
        with open_regular(path) as file:
            while file.read(READ_BYTES):
                pass
    except OSError:
        return False
    return True


def open_video(
    path: Path, *, threads: int = 0, strict: bool = False
) -> tuple[InputContainer, VideoStream]:
    """Return the container and its best video stream. `threads` 0 lets the decoder use all cores.
    With `strict` the decoder reports damage, as an error or by a mark. Raises MediaError."""
    container = open_checked(path)
    try:
        stream = _video_stream(path, container)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        codec = stream.codec_context.name
        options = STRICT if strict and codec not in LENIENT_CODECS else {}
        stream.thread_type = THREAD_TYPES.get(codec, "AUTO")
        stream.codec_context.thread_count = threads
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), **options}
        context = stream.codec_context
        if codec == "rawvideo" and context.pix_fmt == "bgra" and not context.codec_tag.strip("\0"):
            context.pix_fmt = "bgr0"  # as in AVI, whose fourth byte is undefined
    except BaseException:
        container.close()
        raise
    return container, stream


def rate_and_frames(path: Path) -> tuple[float, int]:
    """Return the frames per second of a video on average, and their number, as its headers state
    them; 0 for what they do not. Raises MediaError."""
    container, stream = open_video(path)
    with container:
        rate = float(stream.average_rate or 0)
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / av.time_base
        return rate, stream.frames or round(seconds * rate)


def has_alpha_track(stream: VideoStream) -> bool:
    """Return whether a WebM track says that it stores transparency beside its frames."""
    says = any(k.lower() == "alpha_mode" and v == "1" for k, v in stream.metadata.items())
    return says and stream.codec_context.name in ALPHA_DECODERS


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """Return the decoder of a stream of `open_video`: its own, or one that decodes alpha."""
    own = stream.codec_context
    if not has_alpha_track(stream):
        return own
    decoder = av.CodecContext.create(ALPHA_DECODERS[own.name], "r")
    assert isinstance(decoder, VideoCodecContext)
    for name in ("extradata", "thread_count", "options", "color_range", "colorspace"):
        setattr(decoder, name, getattr(own, name))
    return decoder


def open_checked(path: Path) -> InputContainer:
    """Return the container of a media file. Raises MediaError."""
    check_file(path)
    try:
        return open_container(path)
    except av.error.FFmpegError as error:
        if not is_damage(error, path):
            raise
        raise _cannot_open(path, error) from error


def open_container(path: Path) -> InputContainer:
    """Open a media file with FFmpeg, and no other file or address. Raises FFmpegError."""
    return open_media(path, options=OPTIONS)


def default_track(tracks: Sequence[AudioStream]) -> int:
    """Return the index of the sound track that the file marks as default, else 0."""
    marked = (at for at, track in enumerate(tracks) if track.disposition & Disposition.default)
    return next(marked, 0)


def time_zero(container: InputContainer) -> Fraction:
    """Return time 0 of a file in seconds of its own clock: where its first stream starts. Covers
    and data do not count, though FFmpeg counts them."""
    start = Fraction(container.start_time or 0, av.time_base)
    shown = [
        stream.start_time * stream.time_base
        for stream in container.streams
        if stream.type in ("video", "audio", "subtitle")
        and not stream.disposition & Disposition.attached_pic
        and stream.start_time is not None
        and stream.time_base
    ]
    exact = min(shown, default=start)
    return exact if exact > start - Fraction(1, av.time_base) else start  # `start` is rounded


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = ("cover picture" if s.type == "video" else s.type for s in container.streams)
        raise MediaError(
            f"{path} holds no video ({', '.join(kinds) or 'nothing'})",
            kind="no-video",
            hint="Leave it out; only videos and images are supported",
        )
    # PyAV returns None for a codec that it was built without, despite its annotation.
    if stream.codec_context is None:  # pragma: no cover  # needs a codec that no wheel lacks
        raise MediaError(
            f"{path} uses a codec that this FFmpeg cannot decode",
            kind="no-decoder",
            hint="Convert it, for example to H.264 in MP4",
        )
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise MediaError(
            f"{path} has frames of {stream.codec_context.width} x "
            f"{stream.codec_context.height} pixels, more than any camera's",
            kind="too-large",
            hint="Scale it down first, if its header is right",
        )
    if has_no_base_layer(path):
        raise MediaError(
            f"{path} is Dolby Vision without a base layer (profile 5, or 10.0), which plain "
            "decoders show in green and purple",
            kind="no-decoder",
            hint="Convert it first: ffmpeg -i FILE -vf libplacebo=tonemapping=bt.2390 OUT.mp4",
        )
    if not stream.time_base:  # None or 0/1, depending on the version of PyAV
        raise MediaError(
            f"{path} has no time base",
            kind="damaged",
            hint="Remux it: ffmpeg -i FILE -c copy OUT.mkv",
        )
    return stream


def no_frames(path: Path) -> MediaError:
    """Return the error for a video without a single decodable frame."""
    return MediaError(
        f"{path} has no decodable frame",
        kind="no-frames",
        hint="Check in a player whether it is complete, or leave it out",
    )


def _cannot_open(path: Path, error: av.error.FFmpegError) -> MediaError:
    with open_regular(path) as file:
        start = file.read(16)
    if not isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return MediaError(
            f"{path} is damaged ({error.strerror})",
            kind="damaged",
            hint="Copy or download it again",
        )
    if start[ISO_BRANDS_AT] == b"ftyp":
        return MediaError(
            f"{path} ends before its index, or the index is damaged (no moov atom)",
            kind="no-moov",
            hint="Copy or download it again, or repair it with untrunc",
        )
    return MediaError(
        f"{path} is not a media file that FFmpeg can read ({error.strerror})",
        kind="not-media",
        hint="Check in a player whether it is complete, or leave it out",
    )


JUMP_BACK_SECONDS = 1.0
"""A clock that goes back further than this was reset, as at the joint of two recordings."""
JUMP_AHEAD_SECONDS = 3600.0
"""A clock that jumps further than this was reset; shorter gaps are still images."""
RESET = ("mpegts", "mpeg", "flv")
"""Formats of recordings whose clock may be reset. In all others an image may stand for hours."""
REORDER_SECONDS = 10.0
"""A time further than this from the decoding position is wrong, as after a flipped bit."""
REORDER_PACKETS = 32
"""After so many packets, decoding has reached a frame's time, however long an image stands. No
codec reorders more than 16 frames, and each may be two fields."""
DECODING_TIMES = ("avi", "asf")
"""Formats without presentation times. AVI counts slots, and some may be empty. It begins with slot
0 even if reordering delays the first frame; the sound cannot be delayed as much."""
UNORDERED = ("h264", "hevc", "vvc")
"""Codecs for which FFmpeg does not compute times of display from those of decoding."""
PACKED = re.compile(rb"DivX\d+[Bb]\d+p")
"""How DivX and XviD mark MPEG-4 whose packets hold a frame and the next one to be shown before it
("packed B-frames"). FFmpeg gives the times of such packets to the wrong frames."""
BLOCK = 1 << 14
"""Frames that are checked at a time, to bound memory."""


class PacketTimes:
    """The times that one pass over the packets collects; 24 bytes per frame."""

    def __init__(self, time_base: Fraction, *, hides: bool, resets: bool) -> None:
        self.pts = array("q")
        self.dts = array("q")
        self.ordinals = array("q")
        self.keys: tuple[array[int], array[int], array[int]] = (array("q"), array("q"), array("q"))
        self.jumps: list[tuple[int, int]] = []
        self.untimed = 0
        self.count = 0
        self.last = (-(1 << 62), 0)
        self._hides, self._resets = hides, resets
        self._offset = 0
        self._clock: int | None = None
        self._step = 0
        self._back = int(JUMP_BACK_SECONDS / time_base)
        self._ahead = max(1, int(JUMP_AHEAD_SECONDS / time_base))

    def add(self, packet: VideoPacket) -> None:
        ordinal, self.count = self.count, self.count + 1
        raw, duration = packet.pts, packet.duration or 0
        dts = raw if packet.dts is None else packet.dts
        if dts is not None and self._resets:
            self._follow(dts, ordinal)
        if raw is None or dts is None:
            # Packets before the first keyframe cannot be decoded anyway.
            self.untimed += bool(self.keys[0]) or packet.is_keyframe
            return
        pts = raw + self._offset
        if packet.is_keyframe:
            for column, value in zip(self.keys, (pts, dts, ordinal), strict=True):
                column.append(value)
        if not packet.is_discard and not (self._hides and _is_hidden(packet)):
            self.pts.append(pts)
            self.dts.append(dts + self._offset)
            self.ordinals.append(ordinal)
            self.last = max(self.last, (pts, duration))

    def remove_wrong_times(self, time_base: Fraction, *, to_the_end: bool) -> frozenset[int]:
        """Remove the frames whose times are wrong, and return the ordinals of their packets.

        No later packet confirms the last few times. With `to_the_end` they are checked like the
        others, else only against the largest jump of a clock, if it can jump.
        """
        pts, dts, ordinals = (
            np.frombuffer(column, dtype=np.int64) for column in (self.pts, self.dts, self.ordinals)
        )
        step = (int(dts[-1]) - int(dts[0])) // len(dts)
        # No later packet confirms the last times, so slow slide shows need tolerance there.
        bound = max(int(REORDER_SECONDS / time_base), REORDER_PACKETS * step)
        end = int(dts[-1])
        if not to_the_end:
            last = int(pts.max())
            end = max(end, min(last, end + self._ahead) if self._resets else last)
        odd = np.empty(len(pts), dtype=np.bool_)
        for first in range(0, len(pts), BLOCK):
            block = slice(first, first + BLOCK)
            later = np.full(len(pts[block]), end)
            reached = dts[first + REORDER_PACKETS : first + REORDER_PACKETS + len(later)]
            later[: len(reached)] = reached
            odd[block] = (pts[block] > later + bound) | (pts[block] < dts[block] - bound)
        # If most are odd, the decoding clock is wrong instead.
        if not odd.any() or 2 * odd.sum() > len(odd):
            return frozenset()
        out = frozenset(ordinals[odd].tolist())
        self.pts = array("q", pts[~odd].tolist())
        self.last = (max(self.pts), self.last[1])
        keys_kept = [key for key in zip(*self.keys, strict=True) if key[2] not in out]
        pts_, dts_, ordinals_ = zip(*keys_kept, strict=True) if keys_kept else ((), (), ())
        self.keys = (array("q", pts_), array("q", dts_), array("q", ordinals_))
        return out

    def _follow(self, dts: int, ordinal: int) -> None:
        now = dts + self._offset
        if self._clock is not None:
            leap = now - self._clock
            if not -self._back <= leap <= self._ahead:
                self._offset += self._step - leap
                self.jumps.append((ordinal, self._offset))
                now = self._clock + self._step
            elif leap > 0:
                self._step = leap
        self._clock = now


def _is_hidden(packet: VideoPacket) -> bool:
    """Return whether a VP8 packet holds a frame for reference only; its header says so."""
    return not memoryview(packet)[0] & 0x10


GUESSED = "mpeg"
"""Format in which a time may be stated for several frames at once, and FFmpeg guesses whose it is.
Where it gives two frames one time, those around them are wrong as well."""
STREAMED = ("mpegts", "mpeg")
"""Broadcast formats, where any bit may flip. In all other formats, a late time at the very end is
more likely an image that stands for minutes."""
MAX_TRIES = 1000
"""How often FFmpeg may ask to be called again for one file."""


def packets(container: InputContainer, stream: S) -> Iterator["Packet[S]"]:
    """Yield the non-empty packets of the stream, until the file ends or its structure breaks."""
    in_order = (
        isinstance(stream, VideoStream)
        and _lacks_times(container)
        and not stream.codec_context.has_b_frames
    )
    for _ in range(MAX_TRIES):
        try:
            for packet in container.demux(stream):
                step()
                if packet.size:
                    if in_order:
                        packet.pts = packet.dts  # FFmpeg guesses the next packet's
                    yield packet
            return
        except IndexError:
            return  # PyAV at the end of a file in which a further stream appears
        except av.error.BlockingIOError:
            continue  # FFmpeg skipped something
        except av.error.FFmpegError as error:
            if not is_damage(error, Path(container.name)):
                raise
            return


def survey(
    stream_packets: Iterator[VideoPacket], container: InputContainer, stream: VideoStream
) -> Timeline | None:
    """Read times and keyframes by demuxing alone, at 5 µs per packet; None: there are none."""
    assert stream.time_base is not None
    resets, hides = container.format.name in RESET, stream.codec_context.name == "vp8"
    streamed, cut = container.format.name in STREAMED, False
    times = PacketTimes(stream.time_base, hides=hides, resets=resets)
    for packet in stream_packets:
        if packet.is_corrupt and not streamed:  # the file ends within it
            cut = True
            times.count += 1
        else:
            times.add(packet)
    if times.untimed or not times.pts or _only_counts(times.pts, container, stream):
        return None
    odd = times.remove_wrong_times(stream.time_base, to_the_end=streamed)
    del times.dts, times.ordinals  # megabytes for hours of video
    key_pts, key_dts, ordinals = times.keys
    ticks = _ascending(times.pts)
    if len(ticks) < len(times.pts) and container.format.name == GUESSED:
        return None
    # Two packets with one time may be two fields of one frame; a seek must not separate them.
    ordered = len(ticks) == len(times.pts) and all(a < b for a, b in pairwise(key_pts))
    keyframes = Keyframes(pts=key_pts, dts=key_dts, ordinals=ordinals)
    late = key_pts[0] - key_dts[0] if key_pts and container.format.name == "avi" else 0
    first = (int(ticks[0]) - late) * stream.time_base
    offset, warnings = _offset(container, first)
    if times.jumps:
        jumps = counted(len(times.jumps), "time")
        warnings.append(f"its clock is reset {jumps}; times continue from there")
    warnings += [CUT_OFF] * cut
    if odd:
        warnings.append(f"skipped because of a wrong time: {counted(len(odd), 'frame')}")
    return Timeline(
        pts=ticks,
        time_base=stream.time_base,
        last_ticks=_last_ticks(times.pts, times.last[1], stream, resets=resets),
        offset=offset,
        keyframes=keyframes if ordered and key_pts and not times.jumps else None,
        jumps=tuple(times.jumps),
        disbelieved=odd,
        # Without a header FFmpeg derives the length from the doubtful times.
        announced_seconds=(
            None if odd and streamed else announced_seconds(container, stream, first)
        ),
        warnings=tuple(warnings),
    )


def watch(frames: Iterator[VideoFrame], container: InputContainer, stream: VideoStream) -> Timeline:
    """Read times by decoding everything once, for files whose packets do not have them."""
    pts, slots, count = array("q"), array("q"), 0
    for frame in frames:
        count += 1
        for column, ticks in ((pts, frame.pts), (slots, frame.dts)):
            if ticks is not None:
                column.append(ticks)
    assert stream.time_base is not None
    time_base, late, counted = stream.time_base, 0, True
    if _lacks_times(container) and slots and _ascends(slots):
        pts, late = _of_slots(slots, count)
    elif len(pts) == count and _ascends(pts):
        counted = False
    else:
        rate: Any = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
        pts, time_base = array("q", range(count)), 1 / Fraction(rate)
    if time_base == stream.time_base:
        last = _last_ticks(pts, 0, stream)
        first = (pts[0] - (late if container.format.name == "avi" else 0)) * time_base
    else:
        last, first = 1, (stream.start_time or 0) * stream.time_base
    offset, warnings = _offset(container, first)
    return Timeline(
        pts=np.frombuffer(pts, dtype=np.int64),
        time_base=time_base,
        last_ticks=last,
        offset=offset,
        counted=counted,
        keyframes=None,
        demuxed=False,
        announced_seconds=announced_seconds(container, stream, first),
        warnings=tuple(warnings),
    )


def _of_slots(slots: "array[int]", count: int) -> "tuple[array[int], int]":
    """Return the ticks of `count` frames, and the ticks by which reordering delays them. `slots`
    are the decoding times of the packets with which frames leave the decoder; the last frames leave
    it after all packets."""
    step = int(np.median(np.diff(slots))) if len(slots) > 1 else 1
    waiting = count - len(slots)
    later = range(slots[-1] + step, slots[-1] + step * (waiting + 1), step)
    return array("q", [*slots, *later]), step * waiting


def _ascends(ticks: "array[int]") -> bool:
    return all(a < b for a, b in pairwise(ticks))


def _offset(container: InputContainer, first: Fraction) -> tuple[float, list[str]]:
    """Return the seconds from time 0 to the first frame, which is at `first` on the file's clock,
    and a warning if they cannot be true. They are negative if FFmpeg begins with a later frame."""
    offset = first - time_zero(container)
    if container.duration is None or offset <= Fraction(container.duration, av.time_base):
        return float(offset), []
    return 0.0, [
        f"its first frame is stated at {float(offset):.2f} s, behind the end of the file; times "
        "count from that frame"
    ]


def announced_seconds(container: InputContainer, stream: S, first: Fraction) -> float | None:
    """Return the length that the file states from its first frame, at `first` on the file's clock,
    to its last one. Return None if only the length of the whole file is known."""
    hours, minutes, seconds = ([*stream.metadata.get("DURATION", "").split(":"), "", ""])[:3]
    try:
        end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)  # Matroska states the end
        return end - float(first)
    except ValueError:
        pass
    several = len(container.streams) > 1
    if stream.duration is not None and stream.time_base is not None:
        start = (stream.start_time or 0) * stream.time_base
        # FFmpeg states the file's start and length if it has not found those of the stream.
        if not several or abs(first - start) <= SHORT_SECONDS:
            return float(start + stream.duration * stream.time_base - first)
    if container.duration is None or several:
        return None
    return container.duration / av.time_base - max(float(first), 0.0)


def _only_counts(ticks: "array[int]", container: InputContainer, stream: VideoStream) -> bool:
    """Return whether packets have times of decoding alone although frames are shown in another
    order. FFmpeg corrects that for MPEG-4, if each frame has a packet, but not for H.264."""
    context = stream.codec_context
    if context.name == "mpeg4" and PACKED.search(context.extradata or b""):
        return True
    unknown = container.format.name == "avi" or context.name in UNORDERED
    return _lacks_times(container) and unknown and context.has_b_frames and _ascends(ticks)


def _lacks_times(container: InputContainer) -> bool:
    return container.format.name in DECODING_TIMES


def _ascending(ticks: "array[int]") -> NDArray[np.int64]:
    view = np.frombuffer(ticks, dtype=np.int64)
    view.sort()  # in place: times of hours are the largest array of this stage
    return view if bool((view[1:] > view[:-1]).all()) else np.unique(view)


def _last_ticks(
    ticks: "array[int]", stated: int, stream: VideoStream, *, resets: bool = False
) -> int:
    """Return the duration of the last frame: stated, as before, or by the frame rate."""
    assert stream.time_base is not None
    if stated > 0:
        return min(stated, int(JUMP_AHEAD_SECONDS / stream.time_base)) if resets else stated
    last_two = sorted(set(ticks[-16:]))[-2:]
    if len(last_two) == 2:
        return last_two[1] - last_two[0]
    rate: Any = stream.average_rate or DEFAULT_RATE
    return max(1, round(1 / (Fraction(rate) * stream.time_base)))
