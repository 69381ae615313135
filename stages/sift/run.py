"""The sift stage: decodes each file once at small size, and stores what it measures."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from artifacts.claims import POLL_SECONDS, WorkClaims, claims_at
from artifacts.keys import item_key
from artifacts.packs import Record
from artifacts.record_union import record_sets_of
from artifacts.schema import FrameFit
from artifacts.store import open_store
from stages.frames.formats import image_formats
from stages.frames.frame_recorder import failing
from stages.frames.image import TRUNCATED, WRONG_SUMS, read_image
from stages.frames.medium import MediumToCut
from stages.frames.watchdog import Watchdog
from stages.process.cgroup import cores
from stages.process.job import parse_job
from stages.process.report import EventReporter
from stages.sift.job import SiftJob
from stages.sift.measures import (
    SHARP_EDGE,
    bars_of,
    look_of,
    row_of,
    sharpness,
    small_size,
)
from stages.sift.record import NO_POINTS, SERIES, Marked

with contextlib.suppress(ModuleNotFoundError):  # images need no PyAV
    # Imported before memory is counted.
    import stages.sift.video  # noqa: F401

FIT = FrameFit(long_edges=((1.0, SHARP_EDGE),), shrinks=True)
"""JPEG files are decoded at a fraction of their size."""
PACK_RECORDS = 64
"""Most images that are stored together."""


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Mark every medium of the job that has no marks yet.

    A medium that cannot be used is recorded as failed, and the others continue. Raises
    EnvironmentFault for a fault of the store or a disk.
    """
    job, watchdog = parse_job(SiftJob, fields), Watchdog()
    marking = Marking(job, report, watchdog)
    report.total(len(marking.to_do))
    with watchdog, claims_at(marking.store, marking.marks, marking.failures) as marking.turns:
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
        self.turns: WorkClaims
        """Claims of media: which run marks which."""
        self._namespace = job.namespace
        self._report = report
        self._watchdog = watchdog
        self._threads = max(1, cores() // max(1, job.workers))
        self._failed_before = self.failures.keys()
        media = map(MediumToCut.of, job.media)
        self.to_do = {m.digest: m for m in media if m.digest not in self.marks}
        """Media that this run has not claimed yet."""

    def mark(self, group: list[MediumToCut]) -> None:
        """Mark a group of media, and store them together."""
        done: list[Record] = []
        claimed = []
        try:
            for medium in group:
                turn = self.turns.take(partial(self._missing, medium))
                if turn is None:
                    self.to_do[medium.digest] = medium
                if turn:
                    claimed.append(medium.digest)
                    with failing(medium, self.failures, self._report, self._watchdog) as path:
                        of_image = medium.kind == "image"
                        found = image_marks(path) if of_image else self._video(medium, path)
                        medium.check()
                        done.append(found.record(medium.digest))
            new = set(self.marks.publish(done))
            self.failures.drop([one.key for one in done if one.key in self.failures])
            for medium in group:
                if medium.digest in new:
                    self._report.item(medium.digest, label=medium.path.name)
        finally:
            self.turns.done(claimed)

    def _missing(self, medium: MediumToCut) -> list[str]:
        failed = medium.digest in self.failures and medium.digest not in self._failed_before
        return [] if failed or medium.digest in self.marks else [medium.digest]

    def _video(self, medium: MediumToCut, path: Path) -> Marked:
        """Return the measurements of a video. Each part is stored as soon as it is sampled."""
        from stages.sift.video import SampledVideo, joined

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
    meta: dict[str, Any] = {"kind": "image", "bilevel": bilevel, "seconds": 0.0}
    meta |= {"width": index.width, "height": index.height, "bars": bars_of(grey)}
    return Marked(
        meta={**meta, "faults": len({TRUNCATED, WRONG_SUMS} & {*index.warnings})},
        looks=(look,),
        brightest=NO_POINTS,
        series=np.array([row], np.float32),
    )
