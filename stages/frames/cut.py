"""The stage that makes clips of videos, exact ones or copies of packets, and exact copies of whole
files: a picture upright, on white, in sRGB of 8 bits. Runs no model."""

import contextlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from artifacts.errors import EnvironmentFault, MediaError
from artifacts.remote.media_cache import open_local
from artifacts.store import fault_of
from stages.frames.clip_copy import ClipCutter
from stages.frames.exact_clip import ExactCutter
from stages.frames.image import differs, is_lossless, read_image
from stages.frames.job import CutItem, CutJob
from stages.frames.medium import TRANSIENT_KINDS, check_unchanged
from stages.process.job import parse_job
from stages.process.report import EventReporter

DAMAGED = "damaged"
QUALITY = 95


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Make each of the job's clips in its folder. A note under its name holds the file and the
    start of the clip in it in seconds, or the `error`. Raises EnvironmentFault."""
    job = parse_job(CutJob, job_fields)
    folder = Path(job.folder)
    report.total(len(job.cuts))
    for path, group in groupby(job.cuts, key=lambda cut: cut.path):
        cuts = list(group)
        try:
            with (
                open_local(path),
                contextlib.closing(_Source(path, cuts, job)) as source,
            ):
                for at, cut in enumerate(cuts):
                    try:
                        made = source.make(at, folder / cut.name)
                        check_unchanged(Path(path), cut.stamp)
                    except Exception as error:
                        made = _failure(error, path, folder)
                    report.note(**{cut.name: made})
                    report.item(cut.name, label=source.path.name)
        except Exception as error:  # PyAV lets an IndexError or UnicodeDecodeError through as well
            failure = _failure(error, path, folder)
            report.note(**{cut.name: failure for cut in cuts})


class _Source:
    """One file that clips are made of."""

    def __init__(self, path: str, cuts: Sequence[CutItem], job: CutJob) -> None:
        """Open a file. Raises the errors of opening it."""
        self.path, self._cuts = Path(path), cuts
        check_unchanged(self.path, cuts[0].stamp)
        spans = [(cut.start, cut.end) for cut in cuts]
        is_video = cuts[0].kind == "video"
        self._exact = (
            ExactCutter(
                self.path,
                spans,
                deinterlace=job.deinterlace,
                copies=not cuts[0].damaged,
            )
            if job.exact and is_video
            else None
        )
        self._copier = None if job.exact else ClipCutter(self.path)

    def make(self, at: int, to: Path) -> dict[str, Any]:
        """Make a clip, or say that the whole file is one. Raises MediaError, OSError."""
        cut = self._cuts[at]
        if self._copier is not None:
            return self._copier.copy(cut.start, cut.end, to)
        if self._exact is None:
            return copy_picture(self.path, to, cut.damaged, always=cut.copied)
        why = (self._exact.differs() or DAMAGED * cut.damaged) if cut.whole else ""
        if cut.whole and not why and not cut.copied:
            return {"plain": True}
        made = self._exact.cut(at, to)
        return {**made, "why": why, "plain": not why} if cut.whole else made

    def close(self) -> None:
        """Close the file."""
        if self._exact is not None:
            self._exact.close()


def copy_picture(path: Path, to: Path, damaged: bool, *, always: bool) -> dict[str, Any]:
    """Write an exact copy of a picture to `to` plus a suffix, if readers would show another one, if
    it is `damaged`, or `always`. Return what became of it. Raises MediaError, OSError."""
    why = differs(path) or DAMAGED * damaged
    found: dict[str, Any] = {"why": why, "plain": not why}
    if not why and not always:
        return found
    _, chunk = read_image(path)
    image, lossless = Image.fromarray(chunk.pixels[0]), is_lossless(path)
    made = to.with_name(f"{to.name}.{'png' if lossless else 'jpg'}")
    half = made.with_suffix(".half")
    if lossless:
        image.save(half, "PNG", compress_level=4)
    else:
        image.save(half, "JPEG", quality=QUALITY, subsampling="4:4:4")
    half.replace(made)  # a finished copy of a killed run is taken over
    return {**found, "file": made.name, "start": 0.0}


def _failure(error: Exception, path: str, folder: Path) -> dict[str, str]:
    """Return the reason why clips cannot be made of a file. Raises EnvironmentFault if the file is
    not at fault."""
    if isinstance(error, OSError):
        raise fault_of(error, folder) from error
    if isinstance(error, EnvironmentFault):
        raise error
    if isinstance(error, MediaError) and error.kind in TRANSIENT_KINDS:
        raise EnvironmentFault(error.message, hint=error.hint) from error
    return {"error": getattr(error, "message", str(error)).replace(path, "the file")}
