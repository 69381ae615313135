"""Writes the labels of a run: one line per image or frame, tables, text files next to media, and
the images of each label. Runs no model.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from artifacts.captions import Caption, write_jsonl
from artifacts.files import write_json, write_text
from artifacts.labels import Labelled, Sized, Span, schema, spans_of, write_coco
from artifacts.subtitles import WRITERS
from artifacts.tables import write_csv, write_parquet
from artifacts.words import counted
from flows.job.prepare import Job
from flows.ledger.tasks import Medium
from flows.media.generated_files import OF_LABELS, GeneratedFiles
from flows.media.media_files import MediaFile
from flows.options.formats import COCO, COCO_FILE
from flows.options.text import OutputOptions
from flows.results.labels.rows import LabelContext, LabelledChunk, judged, judged_medium
from flows.results.outputs import failures_of, media_lines
from flows.results.run_result import RunEnd
from flows.results.status import texts_line
from flows.results.text_files import TextFileCounts, write_texts

FINE = 4096
"""Ranges from -1 to 1 in which scores are counted; 16-bit vectors resolve no finer ones."""
BINS = 50
"""Maximum number of bins in the histogram of a label's scores."""


class LabelCounts:
    """The label counts of one run."""

    def __init__(self, labelling: LabelContext) -> None:
        self._labelling = labelling
        size = len(labelling.labels.labels)
        self.pictures = self.labelled = 0
        self.lines: Counter[MediaFile] = Counter()
        """Lines of each file."""
        self._passed = np.zeros(size, np.int64)
        self._fine = np.zeros((size, FINE), np.uint32)
        self._sums = np.zeros((2, size), np.float64)

    def through(self, found: Iterator[LabelledChunk]) -> Iterator[Labelled]:
        """Yield the rows, and count them."""
        every = np.arange(len(self._passed))
        for each in found:
            scores = each.scores.astype(np.float64)
            self.pictures += len(each.rows)
            self.lines[each.file] += len(each.rows)
            self.labelled += int(each.passed.any(axis=1).sum())
            self._passed += each.passed.sum(axis=0)
            self._sums += scores.sum(axis=0), (scores**2).sum(axis=0)
            for places in ((scores + 1) * (FINE / 2)).astype(np.int64).clip(0, FINE - 1):
                self._fine[every, places] += 1
            yield from each.rows

    @property
    def given(self) -> int:
        return int(self._passed.sum())

    def report(self) -> dict[str, Any]:
        """Return for each label how many there were, their scores, and the rule. `low` and `high`
        are where the ranges of all labels' `bins` begin and end."""
        seen = np.flatnonzero(self._fine.any(axis=0))
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, BINS)
        width = -(-(last - first) // BINS)
        starts = np.arange(first, last, width)
        bins = np.add.reduceat(self._fine[:, :last], starts, axis=1)
        return {
            "pictures": self.pictures,
            "labelled": self.labelled,
            "labels_digest": self._labelling.labels.digest,
            "scale": self._labelling.texts.scale,
            "bias": self._labelling.texts.bias,
            "low": score_of(first),
            "high": score_of(int(starts[-1]) + width),
            "labels": [
                self._of(at, name, bins[at]) for at, name in enumerate(self._labelling.labels.names)
            ],
        }

    def _of(self, at: int, name: str, bins: Any) -> dict[str, Any]:
        judge = self._labelling.judge
        threshold = judge.thresholds[at]
        middle = deviation = None
        if self.pictures:
            half = int(np.searchsorted(self._fine[at].cumsum(), self.pictures / 2))
            middle = score_of(half + 0.5)
            mean, squares = self._sums[:, at] / self.pictures
            deviation = round(float(max(0.0, squares - mean**2) ** 0.5), 6)
        return {
            "label": name,
            "passed": int(self._passed[at]),
            "median": middle,
            "deviation": deviation,
            "threshold": None if np.isnan(threshold) else threshold,
            "from": judge.rules[at],
            "bins": bins.tolist(),
        }


def score_of(place: float) -> float:
    """Return the score at a place among the narrow ranges."""
    return round(place / (FINE / 2) - 1, 6)


LINES, REPORT, MEDIA = "labels.jsonl", "label_report.json", "media.jsonl"
SPANS = "label_spans.jsonl"
TABLES = ("csv", "parquet", COCO)


@dataclass(kw_only=True, slots=True)
class LabelsWritten(RunEnd):
    """The end of a labelling run."""

    pictures: int = 0
    """Pictures, and frames of videos, that were looked at."""
    labelled: int = 0
    """Those among them that were given any label."""
    given: int = 0
    labels: int = 0
    """Number of labels that there are."""
    cut: tuple[str, ...] = ()
    """Texts of labels that are longer than the model reads."""
    others: list[str] = field(default_factory=list)
    """Names of the files of `OUT` that were written besides the lines, tables among them."""
    texts: list[TextFileCounts] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    """For each label what it was given to, and how its scores lie, as the report has it."""

    @property
    def made(self) -> int:
        """Return the number of pictures that were looked at."""
        return self.pictures

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs."""
        names = ("pictures", "labelled", "given", "labels")
        made = {name: getattr(self, name) for name in names}
        return self.outcome({**made, "warnings": list(self.notes())})

    def row(self) -> dict[str, Any]:
        """Return what was made, as a row of a table."""
        told = {"files": self.files, "pictures": self.pictures, "labelled": self.labelled}
        return {**told, "given": self.given, "folder": str(self.out)}

    def line(self) -> str:
        """Return the outcome in one line."""
        line = f"{counted(self.labelled, 'picture')} of {self.pictures:,} given "
        line = f"{line}{counted(self.given, 'label')} in {self.out / LINES}"
        line += f" beside {', '.join(self.others)}" if self.others else ""
        for texts in self.texts:
            line += f", {texts_line(texts.to_json())}"
        return f"{line}{self.failed()}"

    def notes(self) -> Iterator[str]:
        """Yield what a person should know about what is written."""
        if self.cut:
            more = f" and {len(self.cut) - 1} more" if len(self.cut) > 1 else ""
            yield f"longer than the model reads, and cut: {self.cut[0]!r}{more}"
        for texts in self.texts:
            yield from texts.notes()


def label_places(job: Job) -> dict[str, str]:
    """Return where the outputs lie, or are to be written."""
    outputs_options = OutputOptions.of(job.config)
    names = {"labels": LINES, "report": REPORT, "failures": "failures.jsonl", "logs": "logs"}
    names |= {
        form: f"labels.{form}" for form in ("csv", "parquet") if form in outputs_options.format
    }
    names |= {COCO: COCO_FILE} if COCO in outputs_options.format else {}
    return {name: str(job.out / file) for name, file in names.items()}


def write_labels(job: Job, labelling: LabelContext) -> LabelsWritten:
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
    found.others = [REPORT, MEDIA, *_write_tables(job, labelling)]
    if any(medium.kind == "video" for medium in job.contents):
        write_text(job.out / SPANS, _span_lines(job, labelling))
        found.others.append(SPANS)
    if set(OutputOptions.of(job.config).format) & set(WRITERS):
        said = partial(_captions, labelling)
        found.texts = write_texts(job, GeneratedFiles(job.store, OF_LABELS), said)
    return found


def _write_tables(job: Job, labelling: LabelContext) -> list[str]:
    """Write the tables that were asked for, and return their names."""
    names = []
    for form in (form for form in TABLES if form in OutputOptions.of(job.config).format):
        names.append(COCO_FILE if form == COCO else f"labels.{form}")
        path = job.out / names[-1]
        rows = (row for each in judged(job, labelling) for row in each.rows)
        if form == "csv":
            write_csv(path, rows, Labelled.__slots__)
        elif form == "parquet":
            write_parquet(path, rows, schema())
        else:
            write_coco(path, labelling.labels.names, _sized(job, labelling))
    return names


def _sized(job: Job, labelling: LabelContext) -> Iterator[Sized]:
    """Yield the labels of pictures, with the size of each as it is shown."""
    for each in judged(job, labelling):
        index = job.ledger.media_index(each.task.medium)
        if each.task.medium.kind == "image" and index is not None:
            yield each.rows[0], index.height, index.width


def _spans(job: Job, labelling: LabelContext, file: MediaFile, medium: Medium) -> Iterator[Span]:
    """Yield the stretches of one video, or a picture as one of no length."""
    found = judged_medium(job, labelling, file, medium)
    rows = [row for each in found for row in each.rows]
    if medium.kind == "image":
        yield from (Span(start=0.0, end=0.0, labels=tuple(row.given)) for row in rows)
    else:
        yield from spans_of(rows, max((each.task.chunk.end for each in found), default=0.0))


def _span_lines(job: Job, labelling: LabelContext) -> Iterator[str]:
    for file, medium in zip(job.files, job.contents, strict=True):
        if medium.kind == "video":
            about = {"media_path": file.media_path, "source": file.source}
            for span in _spans(job, labelling, file, medium):
                yield json.dumps({**about, **asdict(span)}, ensure_ascii=False) + "\n"


def _captions(labelling: LabelContext, job: Job, file: MediaFile, medium: Medium) -> list[Caption]:
    """Return what a text says of one file: its labels, or of a video those of each stretch."""
    spans = _spans(job, labelling, file, medium)
    return [_said(file, span.start, span.end, list(span.labels)) for span in spans]


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
