"""Copies clips of a video into files of their own, without decoding.

A clip begins at the last keyframe at or before its start, because decoding must begin at a
keyframe. It ends with the last frame that begins before its end. Sound is left out.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, dropwhile, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from artifacts.containers import open_media
from artifacts.errors import EnvironmentFault, MediaError
from artifacts.remote.keeping import open_local
from artifacts.stamps import Stamp
from artifacts.store import fault_of
from stages.frames.medium import PASSING, check_unchanged
from stages.frames.opening import open_video
from stages.frames.plan import ROUNDING_SECONDS
from stages.frames.reader import Reader
from stages.frames.survey import packets
from stages.frames.timeline import Timeline, VideoPacket
from stages.process.report import EventReporter

CONTAINERS = (("mp4", "mp4"), ("matroska", "mkv"))
"""Containers and their suffixes. A stretch is put into the first that takes it, or else into what
it was in."""
REORDERED = 32
"""So many packets may come before the first whose time of decoding is known, or the first frame."""
LEAD_SECONDS = 60.0
"""A stretch whose keyframe is further back would be mostly what it is not about, and a video of one
keyframe would be copied over and over."""


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Write each of the job's `cuts` to its `folder`, and note under its name what became of it.
    The note holds the file and the seconds of it at which the stretch starts, or the `error`.
    Raises EnvironmentFault."""
    folder = Path(job["folder"])
    for path, group in groupby(job["cuts"], key=lambda cut: str(cut["path"])):
        cuts = list(group)
        stamp = Stamp(*cuts[0]["stamp"]) if cuts[0].get("stamp") else None
        try:
            with open_local(path):
                _copy_clips(Path(path), stamp, cuts, folder, report)
        except Exception as error:  # PyAV lets an IndexError or UnicodeDecodeError through as well
            refused = _refusal(error, path, folder)
            report.note(**{cut["name"]: refused for cut in cuts})


def _copy_clips(
    path: Path,
    stamp: Stamp | None,
    cuts: Sequence[dict[str, Any]],
    folder: Path,
    report: EventReporter,
) -> None:
    """Write the cuts of one file. Raises what opening it raises."""
    check_unchanged(path, stamp)
    video = ClipCutter(path)
    for cut in cuts:
        try:
            made = video.copy(cut["start"], cut["end"], folder / cut["name"])
            check_unchanged(path, stamp)
        except Exception as error:
            made = _refusal(error, str(path), folder)
        report.note(**{cut["name"]: made})
        report.item(cut["name"], label=path.name)


def _refusal(error: Exception, path: str, folder: Path) -> dict[str, str]:
    """Return why a file cannot be cut from. Raises EnvironmentFault where not the file is at
    fault."""
    if isinstance(error, OSError):
        raise fault_of(error, folder) from error
    if isinstance(error, EnvironmentFault):
        raise error
    if isinstance(error, MediaError) and error.kind in PASSING:
        raise EnvironmentFault(error.message, hint=error.hint) from error
    return {"error": getattr(error, "message", str(error)).replace(path, "the file")}


class ClipCutter:
    """A source video with known frame times."""

    def __init__(self, path: Path) -> None:
        """Open a video and learn its times. Raises MediaError."""
        self.path = path
        reader = Reader(path, threads=1)
        self._timeline: Timeline = reader.timeline
        own = reader.decoder.container.format.name.partition(",")[0]
        self._containers = (*CONTAINERS, (own, path.suffix.lower().lstrip(".")))
        reader.close()

    def copy(self, start: float, end: float, to: Path) -> dict[str, Any]:
        """Write the stretch from `start` to `end` seconds to `to` and the suffix of what holds it.
        Raises MediaError, or OSError."""
        timeline, rate = self._timeline, 1 / self._timeline.time_base
        key = self._keyframe(timeline.start + int((start + ROUNDING_SECONDS) * rate))
        lead = start - timeline.seconds(key.pts)
        if lead > LEAD_SECONDS:
            raise _clip_error(f"its keyframe is {lead:.0f} s before {start:.1f} s")
        beyond = timeline.start + -int(-(end - ROUNDING_SECONDS) * rate // 1)
        for form, suffix in self._containers:
            path = to.with_name(f"{to.name}.{suffix}")
            try:
                self._write(key, beyond, path, form)
                _check_decodable(path)
            except (MediaError, ValueError, av.error.FFmpegError) as error:
                if isinstance(error, OSError) or getattr(error, "kind", "") in PASSING:
                    raise
                why = getattr(error, "message", str(error))
                path.unlink(missing_ok=True)
            else:
                return {"file": path.name, "start": round(max(0.0, lead), 6)}
        raise _clip_error(f"no container takes its packets ({why})")

    def _keyframe(self, ticks: int) -> "_Keyframe":
        keyframes = self._timeline.keyframes
        if keyframes is None or not self._timeline.demuxed:
            raise _clip_error("its packets do not tell when they are shown")
        found = bisect_right(keyframes.pts, ticks) - 1
        if found < 0:
            raise _clip_error("it does not begin with a keyframe")
        return _Keyframe(keyframes.pts[found], keyframes.dts[found], keyframes.ordinals[found])

    def _write(self, key: "_Keyframe", beyond: int, path: Path, form: str) -> None:
        """Copy the packets to a file in which time 0 is the keyframe's."""
        source, stream = open_video(self.path, threads=1)
        with source, open_media(path, "w", format=form) as made:
            # Opaque: also what can only be decoded here.
            copied = made.add_stream_from_template(stream, opaque=True)
            for packet in _with_dts(self._packets(source, stream, key, beyond)):
                assert packet.pts is not None and packet.dts is not None
                packet.pts, packet.dts = packet.pts - key.pts, packet.dts - key.pts
                packet.stream = copied
                made.mux_one(packet)

    def _packets(
        self, container: InputContainer, stream: VideoStream, key: "_Keyframe", beyond: int
    ) -> Iterator[VideoPacket]:
        """Yield the packets from a keyframe on, in the order of decoding. It ends when all later
        ones are shown at `beyond` or after."""
        for ordinal, packet in self._from(container, stream, key):
            if ordinal in self._timeline.disbelieved:
                packet.pts = packet.dts
            if packet.pts is None:
                raise _clip_error("a packet of it has no time")
            if packet.dts is not None and packet.dts >= beyond:
                return
            if packet.pts >= key.pts:  # earlier ones lean on what is before the keyframe
                yield packet

    def _from(
        self, container: InputContainer, stream: VideoStream, key: "_Keyframe"
    ) -> Iterator[tuple[int, VideoPacket]]:
        """Yield the packets from a keyframe on, counted as in the whole file."""
        container.seek(key.dts, stream=stream)
        sought = dropwhile(
            lambda p: not (p.is_keyframe and p.pts == key.pts), packets(container, stream)
        )
        found = next(sought, None)
        if found is not None:
            yield from enumerate(chain([found], sought), key.ordinal)
            return
        # Not every format can be sought to the packet.
        reopened, stream = open_video(self.path, threads=1)
        with reopened:
            numbered = enumerate(packets(reopened, stream))
            yield from dropwhile(lambda each: each[0] < key.ordinal, numbered)


def _check_decodable(path: Path) -> None:
    """Decode a frame: a container may take what it cannot describe, such as raw pictures. Raises
    ValueError where there is none."""
    container, stream = open_video(path, threads=1)
    with container:
        for packet in islice(packets(container, stream), REORDERED):
            with contextlib.suppress(av.error.InvalidDataError):
                if packet.decode():
                    return
        if not stream.decode(None):
            raise ValueError("what was copied cannot be decoded")


class _Keyframe(NamedTuple):
    pts: int
    dts: int
    ordinal: int


def _clip_error(why: str) -> MediaError:
    return MediaError(why, kind="no-cut")


def _with_dts(taken: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
    """Yield the same packets. The first few, which in Matroska have no time of decoding, get
    one."""
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
    """Return packets to be decoded right before `dts`; each also before it is shown."""
    for packet in reversed(waiting):
        assert packet.pts is not None
        dts = packet.pts if dts is None else min(packet.pts, dts - 1)
        packet.dts = dts
    return waiting
