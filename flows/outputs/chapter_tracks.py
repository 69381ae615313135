"""Writes the chapters of summaries as WebVTT tracks, which players show as a list of chapters."""

from collections.abc import Iterable
from pathlib import Path

from artifacts.disk.names import numbered, one_name
from artifacts.texts.captions import Cue, vtt_lines
from flows.core.job.prepare import Job
from flows.core.media.generated_files import GeneratedFiles, about
from flows.outputs.captions import SummaryRow
from flows.outputs.text_files import CHAPTERS, TRACK, text_stems


def track_paths(stems: Iterable[str]) -> dict[str, str]:
    """Return stem of a text → path of the track beside it. No track has the name of a text: a
    medium or a prompt may be named `x.chapters`."""
    stems = [*dict.fromkeys(stems)]
    taken = {one_name(f"{stem}.vtt") for stem in stems}
    paths = {stem: path for stem in stems if one_name(path := stem + CHAPTERS) not in taken}
    taken.update(map(one_name, paths.values()))
    for stem in stems:
        if stem not in paths:
            free = (path for path in numbered(stem, CHAPTERS) if one_name(path) not in taken)
            paths[stem] = next(free)
            taken.add(one_name(paths[stem]))
    return paths


def write_chapters(job: Job, rows: Iterable[SummaryRow]) -> list[str]:
    """Write a track for each summary into the output folder. Return the names of files that are
    kept because a user wrote or edited them, and the run does not replace them. Raises
    EnvironmentFault."""
    own = GeneratedFiles(job.store, out=job.out)
    stems = text_stems(job, beside=False)
    paths, others = track_paths(stems), list[str]()
    files = {
        (f.file.media_path, f.file.source): (f, stem)
        for f, stem in reversed([*zip(job.files, stems, strict=True)])
    }
    for row in rows:
        job_file, stem = files[row.media_path, row.source]
        path = Path(paths[stem])
        of = about(job_file.medium.digest, path, job_file.file.place, job.out)
        cues = [Cue(c["start"], c["end"], c["text"]) for c in row.chapters]
        content = "".join(vtt_lines(cues)).encode("utf-8", errors="replace")
        replaces = job.config.groups.outputs.replaces
        if not own.update(path, content, TRACK, of, replace=replaces):
            others.append(path.name)
    return others
