"""The stage that makes clips of videos: exact ones, or copies of packets. Runs no model."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, MediaError
from artifacts.remote.media_cache import open_local
from artifacts.store import fault_of
from stages.frames.clip_copy import ClipCutter
from stages.frames.exact_clip import ExactCutter
from stages.frames.job import CutItem, CutJob
from stages.frames.medium import TRANSIENT_KINDS, check_unchanged
from stages.process.job import parse_job
from stages.process.report import EventReporter


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Make each of the job's clips in its folder. A note under its name holds the file and the
    start of the clip in it in seconds, or the `error`. Raises EnvironmentFault."""
    job = parse_job(CutJob, job_fields)
    folder = Path(job.folder)
    report.total(len(job.cuts))
    for path, group in groupby(job.cuts, key=lambda cut: cut.path):
        cuts = list(group)
        try:
            with open_local(path):
                _make_clips(Path(path), cuts, folder, report, exact=job.exact)
        except Exception as error:  # PyAV lets an IndexError or UnicodeDecodeError through as well
            failure = _failure(error, path, folder)
            report.note(**{cut.name: failure for cut in cuts})


def _make_clips(
    path: Path, cuts: Sequence[CutItem], folder: Path, report: EventReporter, *, exact: bool
) -> None:
    """Make the clips of one file. Raises the errors of opening it."""
    stamp = cuts[0].stamp
    check_unchanged(path, stamp)
    spans = [(cut.start, cut.end) for cut in cuts]
    video = ExactCutter(path, spans) if exact else ClipCutter(path)
    for at, cut in enumerate(cuts):
        to = folder / cut.name
        try:
            made = (
                video.cut(at, to)
                if isinstance(video, ExactCutter)
                else video.copy(cut.start, cut.end, to)
            )
            check_unchanged(path, stamp)
        except Exception as error:
            made = _failure(error, str(path), folder)
        report.note(**{cut.name: made})
        report.item(cut.name, label=path.name)


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
