"""Copies clips of a video into separate files without decoding.

The packets of a clip begin at the last keyframe at or before its start, because decoding must begin
at a keyframe. Time 0 of an MP4 file is the frame that is shown at the start. The packets before it
have negative times, so FFmpeg writes an edit list: readers decode those frames but hide them.
In other containers, time 0 is the keyframe. A clip ends with the last frame that begins before its
end. Frames behind it from which earlier ones are decoded are in the file, too; the edit list hides
them. Sound is copied or encoded beside them (`clip_sound`).
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from artifacts.containers import open_media
from artifacts.errors import MediaError
from stages.frames.clip_sound import SoundPart, interleaved, part_of, sound_of, write_with
from stages.frames.formats import OPTIONS
from stages.frames.job import TRANSIENT_KINDS
from stages.frames.media_opening import has_alpha_track, open_video, packets
from stages.frames.mp4_boxes import shorten
from stages.frames.reader import Reader
from stages.frames.timeline import Timeline, VideoPacket, tick_at, tick_from

CONTAINERS = (("mp4", "mp4"), ("matroska", "mkv"))
"""Containers and their suffixes. A clip is put into the first one that accepts it, or else into the
container of its source."""
REORDERED = 32
"""Most packets before the first one with a decoding time, or before the first frame."""
LEAD_SECONDS = 60.0
"""Longest distance from a clip to its keyframe. A longer lead would make up most of the clip, and a
video with one keyframe would be copied repeatedly."""


class Keyframe(NamedTuple):
    """A keyframe: its times in the file's ticks, and the number of its packet."""

    pts: int
    dts: int
    ordinal: int


class ClipCutter:
    """A source video with known frame times."""

    def __init__(self, path: Path, *, sound: bool = False, track: int = 0) -> None:
        """Open a video and read its frame times. With `sound`, clips have the video's sound, of
        this `track`. Raises MediaError."""
        self.path = path
        reader = Reader(path, threads=1)
        self._timeline: Timeline = reader.timeline
        opened = reader.decoder.container
        self._sound = sound_of(path, opened, self._timeline, track) if sound else None
        own = opened.format.name.partition(",")[0]
        self._alpha = has_alpha_track(reader.decoder.stream)
        # MP4 would accept the packets without the alpha beside them.
        fitting = CONTAINERS[1:] if self._alpha else CONTAINERS
        self._containers = (*fitting, (own, path.suffix.lower().lstrip(".")))
        reader.close()

    def copy(self, start: float, end: float, to: Path) -> dict[str, Any]:
        """Copy a part, in seconds, to `to` plus a suffix. Raises MediaError or OSError."""
        timeline = self._timeline
        ticks = max(timeline.start, tick_at(timeline, start))
        key = self._keyframe(ticks)
        shown = max(key.pts, int(timeline.pts[np.searchsorted(timeline.pts, ticks, "right") - 1]))
        lead = start - timeline.seconds(key.pts)
        if lead > LEAD_SECONDS:
            raise _clip_error(f"the nearest keyframe is {lead:.0f} s before {start:.1f} s")
        beyond = tick_from(timeline, end)
        for form, suffix in self._containers:
            path = to.with_name(f"{to.name}.{suffix}")
            zero = shown if form == "mp4" else key.pts
            began = timeline.seconds(zero)
            seconds = Fraction(max(0.0, min(end, timeline.end) - began))
            sound, why = part_of(self._sound, began, seconds, form)
            try:
                why |= write_with(partial(self._write, key, zero, beyond, path, form), sound)
                _check_decodable(path)
                hidden = int(np.searchsorted(timeline.pts, beyond))
                if form == "mp4" and hidden < len(timeline.pts):
                    length = int(timeline.pts[hidden]) - zero
                    shorten(path, float(length * timeline.time_base))
            except (MediaError, ValueError, av.error.FFmpegError) as error:
                if isinstance(error, OSError) or getattr(error, "kind", "") in TRANSIENT_KINDS:
                    raise
                reason = getattr(error, "message", str(error))
                path.unlink(missing_ok=True)
            else:
                at = max(0.0, start - began)
                return {"file": path.name, "start": round(at, 6), **why}
        raise _clip_error(f"no container accepts its packets ({reason})")

    def _keyframe(self, ticks: int) -> Keyframe:
        keyframes = self._timeline.keyframes
        if keyframes is None or not self._timeline.demuxed:
            raise _clip_error("its packets have no presentation times")
        found = bisect_right(keyframes.pts, ticks) - 1
        if found < 0:
            raise _clip_error("it does not begin with a keyframe")
        return Keyframe(keyframes.pts[found], keyframes.dts[found], keyframes.ordinals[found])

    def _write(
        self,
        key: Keyframe,
        zero: int,
        beyond: int,
        path: Path,
        form: str,
        sound: SoundPart | None,
    ) -> None:
        """Copy the packets from a keyframe on to a file whose time 0 is at the ticks `zero`."""
        source, stream = open_video(self.path, threads=1)
        with source, open_media(path, "w", format=form) as made:
            # Opaque: also codecs that this FFmpeg cannot encode.
            copied = made.add_stream_from_template(stream, opaque=True)
            if self._alpha:
                copied.metadata["alpha_mode"] = "1"
            pictures = _with_dts(self._packets(source, stream, key, beyond))
            for packet in interleaved(made, _moved(pictures, zero, copied), sound):
                made.mux_one(packet)

    def _packets(
        self, container: InputContainer, stream: VideoStream, key: Keyframe, beyond: int
    ) -> Iterator[VideoPacket]:
        """Yield the packets from a keyframe on, in decoding order, until all later ones are shown
        at `beyond` or after."""
        for ordinal, packet in packets_from(self.path, container, stream, key):
            if ordinal in self._timeline.disbelieved:
                packet.pts = packet.dts
            if packet.pts is None:
                raise _clip_error("one of its packets has no time")
            if packet.dts is not None and packet.dts >= beyond:
                return
            if packet.pts >= key.pts:  # earlier ones refer to frames before the keyframe
                yield packet


def _check_decodable(path: Path) -> None:
    """Decode one frame, because a container may accept what it cannot describe, such as raw video.
    Raises ValueError if no frame is decoded."""
    # Without the edit list: a reader that obeys it decodes all hidden frames first.
    with open_media(path, options={**OPTIONS, "ignore_editlist": "1"}) as container:
        if not container.streams.video:
            raise ValueError("the copied clip has no video")
        stream = container.streams.video[0]
        stream.thread_count = 1
        for packet in islice(packets(container, stream), REORDERED):
            with contextlib.suppress(av.error.InvalidDataError):
                if packet.decode():
                    return
        if not stream.decode(None):
            raise ValueError("the copied clip cannot be decoded")


def packets_from(
    path: Path, container: InputContainer, stream: VideoStream, key: Keyframe
) -> Iterator[tuple[int, VideoPacket]]:
    """Yield the packets of a file from a keyframe on, each with its number in the whole file."""
    container.seek(key.dts, stream=stream)
    sought = dropwhile(
        lambda p: not (p.is_keyframe and p.pts == key.pts), packets(container, stream)
    )
    found = next(sought, None)
    if found is not None:
        yield from enumerate(chain([found], sought), key.ordinal)
        return
    # Not every format supports seeking to a packet.
    reopened, stream = open_video(path, threads=1)
    with reopened:
        numbered = enumerate(packets(reopened, stream))
        yield from dropwhile(lambda each: each[0] < key.ordinal, numbered)


def _clip_error(reason: str) -> MediaError:
    return MediaError(reason, kind="no-cut")


def _with_dts(taken: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
    """Yield the packets. Add decoding times to the first few, which have none in Matroska."""
    waiting: list[VideoPacket] = []
    for packet in taken:
        if packet.dts is None and len(waiting) < REORDERED:
            waiting.append(packet)
            continue
        yield from _before(packet.dts, waiting)
        waiting = []
        yield packet
    yield from _before(None, waiting)


def _moved(taken: Iterator[VideoPacket], zero: int, stream: VideoStream) -> Iterator[VideoPacket]:
    """Yield the packets for another stream, with times since the ticks `zero`."""
    for packet in taken:
        assert packet.pts is not None and packet.dts is not None
        packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
        packet.stream = stream
        yield packet


def _before(dts: int | None, waiting: Sequence[VideoPacket]) -> Sequence[VideoPacket]:
    """Set decoding times right before `dts`, each before its presentation time."""
    for packet in reversed(waiting):
        assert packet.pts is not None
        dts = packet.pts if dts is None else min(packet.pts, dts - 1)
        packet.dts = dts
    return waiting
