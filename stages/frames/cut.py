"""Copies stretches of videos into files of their own, without decoding; knows nothing of what they
are for.

A stretch begins at the last keyframe at or before its start, since nothing can be shown without
one, and ends with the last frame that begins before its end. Its sound is left out.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from artifacts.errors import EnvironmentFault, MediaError
from artifacts.store import fault_of
from stages.frames.opening import open_video
from stages.frames.plan import ROUNDING_SECONDS
from stages.frames.reader import Reader
from stages.frames.run import PASSING
from stages.frames.survey import packets
from stages.frames.timeline import Timeline, VideoPacket
from stages.process.report import Report

CONTAINERS = (("mp4", "mp4"), ("matroska", "mkv"))
"""What a stretch is put into, and its suffix: the first that holds the codec."""
REORDERED = 32
"""So many packets may come before the first whose time of decoding is known."""
LEAD_SECONDS = 60.0
"""A stretch whose keyframe is further back would be mostly what it is not about, and a video of one
keyframe would be copied over and over."""


def run(job: dict[str, Any], report: Report) -> None:
    """Write each of the job's `cuts` to its `folder` and note what became of it under its name: the
    file and the seconds of it at which the stretch starts, or the `error`. Raises
    EnvironmentFault."""
    folder = Path(job["folder"])
    for path, group in groupby(job["cuts"], key=lambda cut: str(cut["path"])):
        cuts = list(group)
        try:
            video = Stretches(Path(path))
        except (MediaError, av.error.FFmpegError) as error:
            refused = _refusal(error, path, folder)
            report.note(**{cut["name"]: refused for cut in cuts})
            continue
        for cut in cuts:
            try:
                made = video.copy(cut["start"], cut["end"], folder / cut["name"])
            except (MediaError, av.error.FFmpegError, OSError) as error:
                made = _refusal(error, path, folder)
            report.note(**{cut["name"]: made})
            report.item(cut["name"], label=Path(path).name)


def _refusal(
    error: MediaError | av.error.FFmpegError | OSError, path: str, folder: Path
) -> dict[str, str]:
    """Why a file cannot be cut from. Raises EnvironmentFault where not the file is at fault."""
    if isinstance(error, OSError):
        raise fault_of(error, folder) from error
    if isinstance(error, MediaError) and error.kind in PASSING:
        raise EnvironmentFault(error.message, hint=error.hint) from error
    text = error.message if isinstance(error, MediaError) else error.strerror
    return {"error": str(text).replace(path, "the file")}


class Stretches:
    """A video to be copied from, its times known."""

    def __init__(self, path: Path) -> None:
        """Raises MediaError."""
        self.path = path
        reader = Reader(path, threads=1)
        self._timeline: Timeline = reader.timeline
        reader.close()

    def copy(self, start: float, end: float, to: Path) -> dict[str, Any]:
        """Write the stretch from `start` to `end` seconds to `to` and the suffix of what holds it.
        Raises MediaError, or what PyAV raises."""
        timeline, rate = self._timeline, 1 / self._timeline.time_base
        key = self._keyframe(timeline.start + int((start + ROUNDING_SECONDS) * rate))
        assert timeline.keyframes is not None
        base = timeline.keyframes.pts[key]
        lead = start - timeline.seconds(base)
        if lead > LEAD_SECONDS:
            raise self._cannot(f"its keyframe is {lead:.0f} s before {start:.1f} s")
        beyond = timeline.start + -int(-(end - ROUNDING_SECONDS) * rate // 1)
        container, stream = open_video(self.path, threads=1)
        with container:
            taken = self._packets(container, stream, key, beyond)
            suffix = _write(taken, stream, base, to)
        return {"file": f"{to.name}.{suffix}", "start": round(max(0.0, lead), 6)}

    def _keyframe(self, ticks: int) -> int:
        keyframes = self._timeline.keyframes
        if keyframes is None or not self._timeline.demuxed:
            raise self._cannot("its packets do not tell when they are shown")
        found = bisect_right(keyframes.pts, ticks) - 1
        if found < 0:
            raise self._cannot("it does not begin with a keyframe")
        return found

    def _packets(
        self, container: InputContainer, stream: VideoStream, key: int, beyond: int
    ) -> Iterator[VideoPacket]:
        """The packets from a keyframe on, in the order of decoding, until all later ones are shown
        at `beyond` or after."""
        keyframes = self._timeline.keyframes
        assert keyframes is not None
        pts, ordinal = keyframes.pts[key], keyframes.ordinals[key] - 1
        container.seek(keyframes.dts[key], stream=stream)
        begun = False
        for packet in packets(container, stream):
            if not begun:
                begun = packet.is_keyframe and packet.pts == pts
                if not begun:
                    continue
            ordinal += 1
            if ordinal in self._timeline.disbelieved:
                packet.pts = packet.dts
            if packet.pts is None:
                raise self._cannot("a packet of it has no time")
            if packet.dts is not None and packet.dts >= beyond:
                return
            if packet.pts >= pts:  # earlier ones lean on what is before the keyframe
                yield packet
        if not begun:
            raise self._cannot("its keyframe is not found again")

    def _cannot(self, why: str) -> MediaError:
        return MediaError(why, kind="no-cut")


def _write(taken: Iterator[VideoPacket], stream: VideoStream, base: int, to: Path) -> str:
    """Put packets into a file in which time 0 is `base`; returns its suffix."""
    for form, suffix in CONTAINERS:
        path = to.with_name(f"{to.name}.{suffix}")
        with av.open(os.fspath(path), "w", format=form) as container:
            try:
                # Opaque: also what only can be decoded here.
                copied = container.add_stream_from_template(stream, opaque=True)
            except ValueError:
                continue
            for packet in _with_dts(taken):
                assert packet.pts is not None and packet.dts is not None
                packet.pts, packet.dts = packet.pts - base, packet.dts - base
                packet.stream = copied
                container.mux_one(packet)
        return suffix
    raise MediaError(f"{stream.codec_context.name} fits no container", kind="no-cut")


def _with_dts(taken: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
    """The same packets; the first few, which in Matroska have no time of decoding, get one."""
    waiting: list[VideoPacket] = []
    for packet in taken:
        if packet.dts is None and len(waiting) < REORDERED:
            waiting.append(packet)
            continue
        yield from _before(packet.dts, waiting)
        waiting = []
        yield packet
    yield from _before(None, waiting)


def _before(dts: int | None, waiting: Sequence[VideoPacket]) -> Sequence[VideoPacket]:
    """Packets to be decoded right before `dts`; each also before it is shown."""
    for packet in reversed(waiting):
        assert packet.pts is not None
        dts = packet.pts if dts is None else min(packet.pts, dts - 1)
        packet.dts = dts
    return waiting
