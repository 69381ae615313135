"""The sift stage: decodes each file once at small size, and stores what it measures.

It samples a video every half second, in parts that are stored one by one.
"""

import contextlib
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.disk.json_shapes import Json
from artifacts.frame_fit import FrameFit
from artifacts.records.claims import POLL_SECONDS, WorkClaims, claims_at
from artifacts.records.keys import item_key
from artifacts.records.packs import Record, record_sets_of
from artifacts.records.store import open_store
from stages.frames.frame_converter import FrameConverter, shown_size
from stages.frames.frame_recorder import Watchdog, failing
from stages.frames.image import TRUNCATED, WRONG_SUMS, read_image
from stages.frames.image_formats import image_formats
from stages.frames.job import FramesItem
from stages.frames.media_opening import no_frames
from stages.frames.reader import Reader
from stages.process.events import EventReporter
from stages.process.host_memory import cores
from stages.process.job import JobFields, parse_job
from stages.sift import SiftJob
from stages.sift.measures import (
    BLACK_SHARE,
    EDGE,
    FRACTIONS,
    NO_POINTS,
    SERIES,
    SHARP_EDGE,
    STEP_SECONDS,
    Grey,
    Look,
    Marked,
    bars_of,
    look_of,
    row_of,
    sharpness,
    small_size,
    thumb_of,
)

SHARP_EVERY = 8
"""Sharpness is measured on one of so many samples: it takes longer than all other marks."""
PART = 600
"""Samples of a part: five minutes, which is the most that a killed run loses of a video."""


class SampledVideo:
    """An open video, and the times of its samples."""

    def __init__(self, path: Path, *, threads: int) -> None:
        """Open a video. Raises MediaError."""
        self._reader = Reader(path, threads=threads)
        self._timeline = timeline = self._reader.timeline
        self._shown = shown_size(
            self._reader.first_frame, self._reader.decoder.stream.sample_aspect_ratio
        )
        frame, (height, width) = self._reader.first_frame, self._shown
        sizes = (small_size(width, height, edge)[::-1] for edge in (EDGE, SHARP_EDGE))
        self._small, self._sharp = (FrameConverter(frame, size, grey=True) for size in sizes)
        self._colours = FrameConverter(frame, self._small.size)
        wanted = np.arange(0, max(timeline.duration, 1e-9), STEP_SECONDS)
        ticks = timeline.start + np.rint(wanted / float(timeline.time_base)).astype(np.int64)
        at = np.minimum(np.searchsorted(timeline.pts, ticks), len(timeline.pts) - 1)
        self._ticks = np.unique(timeline.pts[at])
        count = len(self._ticks)
        self._looks_at = [round(share * (count - 1)) for share in FRACTIONS]
        self.parts = -(-count // PART)
        """Number of its parts."""

    def __enter__(self) -> "SampledVideo":
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.close()

    def meta(self) -> dict[str, Json]:
        """Return what is known of the whole video."""
        height, width = self._shown
        return {
            "kind": "video",
            "width": width,
            "height": height,
            "start": self._timeline.offset,
            "seconds": round(self._timeline.duration, 3),
            "faults": len(self._timeline.all_warnings()),
        }

    def sampled(self, parts: Sequence[int]) -> Iterator[tuple[int, Marked]]:
        """Yield these parts, ascending. Raises MediaError if no sample can be decoded."""
        # Each part needs the sample before it, to see what changed since.
        wanted = [range(max(0, at * PART - 1), (at + 1) * PART) for at in parts]
        numbers = sorted({n for span in wanted for n in span if n < len(self._ticks)})
        self._reader.request(array("q", (int(self._ticks[n]) for n in numbers)))
        before: tuple[int, float, Grey] | None = None
        for part in parts:
            samples = _Part(self._small.size)
            for number in range(max(0, part * PART - 1), min((part + 1) * PART, len(self._ticks))):
                if before is not None and before[0] == number:
                    continue  # the last sample of the part before
                before = self._take(samples, number, before, own=number >= part * PART)
            yield part, samples.marked()

    def _take(
        self, part: "_Part", number: int, before: tuple[int, float, Grey] | None, *, own: bool
    ) -> tuple[int, float, Grey] | None:
        """Add a sample to its part if it is its `own`, and return it for the next one."""
        tick = int(self._ticks[number])
        first = int(self._ticks[number - 1]) + 1 if number else self._timeline.start
        last = number + 1 == len(self._ticks)
        beyond = int(self._timeline.pts[-1]) + 1 if last else int(self._ticks[number + 1])
        decoded = self._reader.at(tick, first, beyond)
        if decoded is None:
            part.faults += own
            return before
        actual, frame = decoded
        part.faults += own * (actual != tick or frame.is_corrupt or self._reader.passed_over)
        self._reader.passed_over = False
        time = self._timeline.since_first(actual)
        grey = self._small.convert(frame)
        thumb = thumb_of(grey)
        if own:
            row = row_of(time, grey, thumb, None if before is None else before[1:])
            looks = self._looks_at.count(number)
            sharp = self._sharp.convert(frame) if looks or number % SHARP_EVERY == 0 else None
            if sharp is not None and number % SHARP_EVERY == 0:
                row[SERIES.index("sharpness")] = sharpness(sharp)
            look = []
            if sharp is not None and looks:
                look = [look_of(grey, sharp, Image.fromarray(self._colours.convert(frame)))]
            part.add(row, grey, look * looks)
        return number, time, thumb


class _Part:
    """The samples of one part so far."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.faults = 0
        self._rows: list[list[float]] = []
        self._looks: list[Look] = []
        self._brightest: NDArray[np.uint8] = np.zeros(size, np.uint8)

    def add(self, row: list[float], grey: Grey, looks: list[Look]) -> None:
        self._rows.append(row)
        self._looks += looks
        if row[SERIES.index("dark")] < BLACK_SHARE:
            np.maximum(self._brightest, grey, out=self._brightest)

    def marked(self) -> Marked:
        return Marked(
            meta={"faults": self.faults},
            looks=tuple(self._looks),
            brightest=self._brightest,
            series=np.array(self._rows, np.float32).reshape(-1, len(SERIES)),
        )


def joined(parts: Sequence[Marked], meta: dict[str, Json], path: Path) -> Marked:
    """Return the parts of a video as one. Raises MediaError if no sample could be decoded."""
    if not any(len(part.series) for part in parts):
        raise no_frames(path)
    faults = meta["faults"] + sum(part.meta["faults"] for part in parts)
    brightest = np.max([part.brightest for part in parts], axis=0)
    return Marked(
        meta={**meta, "faults": faults, "bars": bars_of(brightest)},
        looks=tuple(look for part in parts for look in part.looks),
        brightest=NO_POINTS,
        series=np.concatenate([part.series for part in parts]),
    )


with contextlib.suppress(ModuleNotFoundError):  # images need no PyAV
    # Imported before memory is counted.
    import stages.sift.run  # noqa: F401

FIT = FrameFit(long_edges=((1.0, SHARP_EDGE),), shrinks=True)
"""JPEG files are decoded at a fraction of their size."""
PACK_RECORDS = 64
"""Most images that are stored together."""


def run(fields: JobFields, report: EventReporter) -> None:
    """Mark every medium of the job that has no marks yet.

    A medium that cannot be used is recorded as failed, and the others continue. Raises
    EnvironmentFault for a fault of the store or a disk.
    """
    job, watchdog = parse_job(SiftJob, fields), Watchdog()
    marking = Marking(job, report, watchdog)
    report.total(len(marking.to_do))
    with watchdog, claims_at(marking.store, marking.marks, marking.failures) as marking.claims:
        while marking.to_do:
            before, media, marking.to_do = len(marking.to_do), list(marking.to_do.values()), {}
            images = [m for m in media if m.kind == "image"]
            groups = [[m] for m in media if m.kind == "video"]
            groups += [images[at : at + PACK_RECORDS] for at in range(0, len(images), PACK_RECORDS)]
            with ThreadPoolExecutor(max(1, job.workers), thread_name_prefix="sift") as pool:
                try:
                    list(pool.map(marking.mark, groups))
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            if len(marking.to_do) == before:  # other runs are marking all of them
                time.sleep(POLL_SECONDS)


class Marking:
    """One job: its record sets and the remaining work."""

    def __init__(self, job: SiftJob, report: EventReporter, watchdog: Watchdog) -> None:
        self.store = open_store(job.store)
        self.marks, self.failures = record_sets_of(
            self.store, ("marks", job.namespace), ("failures", job.namespace)
        )
        self.claims: WorkClaims
        """Claims of media: which run marks which."""
        self._namespace = job.namespace
        self._report = report
        self._watchdog = watchdog
        self._threads = max(1, cores() // max(1, job.workers))
        self._failed_before = self.failures.keys()
        self.to_do = {m.digest: m for m in job.media if m.digest not in self.marks}
        """Media that this run has not claimed yet."""

    def mark(self, group: list[FramesItem]) -> None:
        """Mark a group of media, and store them together."""
        done: list[Record] = []
        claimed = []
        try:
            for medium in group:
                is_granted = self.claims.take(partial(self._missing, medium))
                if is_granted is None:
                    self.to_do[medium.digest] = medium
                if is_granted:
                    claimed.append(medium.digest)
                    with failing(medium, self.failures, self._report, self._watchdog) as path:
                        of_image = medium.kind == "image"
                        marked = image_marks(path) if of_image else self._video(medium, path)
                        medium.check()
                        done.append(marked.record(medium.digest))
            new = set(self.marks.publish(done))
            self.failures.drop([one.key for one in done if one.key in self.failures])
            for medium in group:
                if medium.digest in new:
                    self._report.answered(medium.digest, label=Path(medium.path).name)
        finally:
            self.claims.done(claimed)

    def _missing(self, medium: FramesItem) -> list[str]:
        failed = medium.digest in self.failures and medium.digest not in self._failed_before
        return [] if failed or medium.digest in self.marks else [medium.digest]

    def _video(self, medium: FramesItem, path: Path) -> Marked:
        """Return the measurements of a video. Each part is stored as soon as it is sampled."""

        with SampledVideo(path, threads=self._threads) as video:
            keys = [item_key(self._namespace, medium.digest, at) for at in range(video.parts)]
            missing = [at for at, key in enumerate(keys) if key not in self.marks]
            fresh: dict[int, Marked] = {}
            for at, part in video.sampled(missing):
                fresh[at] = part
                if video.parts > 1:
                    medium.check()
                    self.marks.publish([part.record(keys[at])])
            parts = [fresh.get(n) or Marked.of(self.marks.read(k)) for n, k in enumerate(keys)]
            return joined(parts, video.meta(), path)


def image_marks(path: Path) -> Marked:
    """Return the measurements of an image file. Raises MediaError."""
    index, chunk = read_image(path, FIT)
    coloured = Image.fromarray(chunk.pixels[0])
    whole = coloured.convert("L")
    sharp = whole.resize(small_size(*whole.size, SHARP_EDGE), Image.Resampling.BOX)
    small = sharp.resize(small_size(*sharp.size), Image.Resampling.BOX)
    grey = np.asarray(small, np.uint8)
    points = np.asarray(sharp, np.uint8)
    with Image.open(path, formats=image_formats(path)) as image:
        bilevel = image.mode == "1"
    look = look_of(grey, points, None if bilevel else coloured)
    row = row_of(0.0, grey, look.thumb, None)
    row[SERIES.index("sharpness")] = sharpness(points)
    meta: dict[str, Json] = {"kind": "image", "bilevel": bilevel, "seconds": 0.0}
    meta |= {"width": index.width, "height": index.height, "bars": bars_of(grey)}
    return Marked(
        meta={**meta, "faults": len({TRUNCATED, WRONG_SUMS} & {*index.warnings})},
        looks=(look,),
        brightest=NO_POINTS,
        series=np.array([row], np.float32),
    )
