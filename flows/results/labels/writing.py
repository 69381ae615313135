"""Writes the labels of a run: a line a picture or frame, tables, texts beside media, and what each
label was given to; runs no model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.captions import Caption, Failure, write_jsonl
from artifacts.files import write_json, write_text
from artifacts.labels import Labelled, schema, spans_of
from artifacts.tables import write_csv, write_parquet
from artifacts.words import counted
from flows.job.prepare import Job
from flows.job.sources import MediaFile
from flows.job.tasks import Medium
from flows.results.labels.counting import LabelCounts
from flows.results.labels.rows import Judged, Labelling, judged
from flows.results.outputs import failures_of, media_lines
from flows.results.texts import OwnFiles, Texts, write_texts

LINES, REPORT, MEDIA = "labels.jsonl", "label_report.json", "media.jsonl"
TABLES = ("csv", "parquet")


@dataclass(kw_only=True, slots=True)
class LabelsWritten:
    """The end of a run that gave labels."""

    out: Path
    files: int
    """Number of files and sources that were asked for."""
    pictures: int = 0
    """Pictures, and frames of videos, that were looked at."""
    labelled: int = 0
    """Those among them that were given any label."""
    given: int = 0
    labels: int = 0
    """Number of labels that there are."""
    cut: tuple[str, ...] = ()
    """Texts of labels that are longer than the model reads."""
    failures: list[Failure] = field(default_factory=list)
    texts: list[Texts] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    """For each label what it was given to, and how its scores lie, as the report has it."""

    @property
    def made(self) -> int:
        """Return the number of pictures that were looked at."""
        return self.pictures

    @property
    def exit_code(self) -> int:
        """Return 0 when all is labelled, 1 when some items failed."""
        return 1 if self.failures else 0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs; each failure is told by itself."""
        return {
            "out": str(self.out),
            "files": self.files,
            "pictures": self.pictures,
            "labelled": self.labelled,
            "given": self.given,
            "labels": self.labels,
            "warnings": list(self.notes()),
            "failed": len(self.failures),
            "exit_code": self.exit_code,
        }

    def row(self) -> dict[str, Any]:
        """Return what was made, as a row of a table."""
        told = {"files": self.files, "pictures": self.pictures, "labelled": self.labelled}
        return {**told, "given": self.given, "folder": str(self.out)}

    def line(self) -> str:
        """Return the outcome in one line."""
        line = f"{counted(self.labelled, 'picture')} of {self.pictures:,} given "
        line += f"{counted(self.given, 'label')} in {self.out / LINES}"
        if self.failures:
            line += f", {len(self.failures)} of {counted(self.files, 'file')} failed"
        return line

    def notes(self) -> Iterator[str]:
        """Yield what a person should know about what is written."""
        if self.cut:
            more = f" and {len(self.cut) - 1} more" if len(self.cut) > 1 else ""
            yield f"longer than the model reads, and cut: {self.cut[0]!r}{more}"
        for texts in self.texts:
            yield from texts.notes()


def label_places(job: Job) -> dict[str, str]:
    """Return where the outputs lie, or are to be written."""
    names = {"labels": LINES, "report": REPORT, "failures": "failures.jsonl", "logs": "logs"}
    names |= {form: f"labels.{form}" for form in TABLES if form in job.config.format}
    return {name: str(job.out / file) for name, file in names.items()}


def write_labels(job: Job, labelling: Labelling) -> LabelsWritten:
    """Write the labels of all whose vectors are there. Raises EnvironmentFault."""
    found = LabelsWritten(
        out=job.out,
        files=len(job.files) + len(job.failures),
        labels=len(labelling.labels.labels),
        cut=labelling.texts.cut,
        failures=failures_of(job),
    )
    counts = LabelCounts(labelling)
    write_jsonl(job.out / LINES, counts.through(judged(job, labelling)))
    found.pictures, found.labelled, found.given = counts.pictures, counts.labelled, counts.given
    write_jsonl(job.out / "failures.jsonl", found.failures)
    write_text(job.out / MEDIA, media_lines(job.files, [counts.lines[f] for f in job.files]))
    report = counts.report()
    write_json(job.out / REPORT, report)
    found.counts = report["labels"]
    for form, path in ((form, job.out / f"labels.{form}") for form in TABLES):
        if form not in job.config.format:
            continue
        rows = (row for each in judged(job, labelling) for row in each.rows)
        if form == "csv":
            write_csv(path, rows, Labelled.__slots__)
        else:
            write_parquet(path, rows, schema())
    if set(job.config.format) - set(TABLES):
        found.texts = write_texts(job, OwnFiles(job, "labels "), _texts_by(job, labelling))
    return found


def _texts_by(job: Job, labelling: Labelling) -> Any:
    """Return the function that gives what a text says of one file: its labels, or of a video those
    of each stretch."""
    by_medium: dict[str, list[Judged]] = {}
    for each in judged(job, labelling):
        by_medium.setdefault(each.task.medium.digest, []).append(each)

    def said(job: Job, file: MediaFile, medium: Medium) -> list[Caption]:
        found = by_medium.get(medium.digest, [])
        rows = [row for each in found for row in each.rows]
        if medium.kind == "image":
            stretches = [(0.0, 0.0, row.given) for row in rows]
        else:
            end = max((each.task.chunk.end for each in found), default=0.0)
            stretches = [(s.start, s.end, list(s.labels)) for s in spans_of(rows, end)]
        return [_said(file, *stretch) for stretch in stretches]

    return said


def _said(file: MediaFile, start: float, end: float, labels: list[str]) -> Caption:
    return Caption(
        media_path=file.media_path,
        source=file.source,
        start=start,
        end=end,
        caption=", ".join(labels),
        model="",
        prompt="",
        precision={},
        frames=(),
        features="",
        tokens=0,
        ended="stop",
    )
