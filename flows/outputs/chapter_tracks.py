"""Writes the chapters of summaries as WebVTT tracks, which players show as a list of chapters."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from artifacts.texts.captions import vtt_lines
from flows.core.job.prepare import Job
from flows.core.media.generated_files import GeneratedFiles, about
from flows.outputs.captions import SummaryRow
from flows.outputs.text_files import CHAPTERS, text_stems


class ChapterCue(NamedTuple):
    """A chapter, in seconds since the start of its file, as a player counts them."""

    start: float
    end: float
    caption: str


def write_chapters(job: Job, rows: Iterable[SummaryRow]) -> None:
    """Write a track for each summary into the output folder. Files that a user wrote or edited are
    kept, unless the run replaces them. Raises EnvironmentFault."""
    own = GeneratedFiles(job.store, out=job.out)
    stems = zip(job.files, text_stems(job, beside=False), strict=True)
    files = {(f.file.media_path, f.file.source): (f, stem) for f, stem in reversed([*stems])}
    for row in rows:
        job_file, stem = files[row.media_path, row.source]
        path = Path(stem + CHAPTERS)
        of = about(job_file.medium.digest, path, job_file.file.place, job.out)
        cues = [ChapterCue(c["start"], c["end"], c["text"]) for c in row.chapters]
        content = "".join(vtt_lines(cues)).encode("utf-8", errors="replace")
        replaces = job.config.groups.outputs.replaces
        own.update(path, content, "chapters", of, replace=replaces)
