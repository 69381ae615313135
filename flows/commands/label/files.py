"""Writes the labels of a run: JSON lines, tables, text files and a report. Runs no model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.files import encoded, write_json, write_text
from artifacts.disk.json_shapes import Json
from artifacts.texts.captions import Caption, write_jsonl
from artifacts.texts.labels import KINDS, Labelled, Sized, Span, spans_of, write_coco
from artifacts.texts.tables import TABLES
from artifacts.wording import counted
from flows.commands.label.rows import LabelContext, LabelledChunk, label_chunks
from flows.commands.label.tags import tag_spans
from flows.core.console.lines import quoted
from flows.core.job.job_file import JobFile
from flows.core.job.prepare import Job
from flows.core.media.generated_files import OF_LABELS, GeneratedFiles, digest_at
from flows.core.media.media_file import MediaFile
from flows.core.options.formats import COCO, COCO_FILE, MEDIA
from flows.core.pipelines import LABELS
from flows.outputs.marker import write_proved
from flows.outputs.run_result import RunEnd
from flows.outputs.run_wording import texts_line
from flows.outputs.text_files import TextFileCounts, write_texts
from flows.outputs.vectors import file_tasks
from flows.outputs.write import failures_of, media_line, warned_files

FINE = 4096
"""Score ranges from -1 to 1 in the fine histogram; 16-bit vectors resolve no more."""
MAX_COUNTERS = 1 << 24
"""Most ranges of all labels together: 64 MiB. The 100,000 tags of a tagger have fewer each."""
BINS = 50
"""Maximum number of bins in the histogram of a label's scores."""


class LabelCounts:
    """The label counts of one run."""

    def __init__(self, context: LabelContext) -> None:
        self._context = context
        size = len(context.labels.labels)
        self.pictures = self.labelled = 0
        self.lines: Counter[MediaFile] = Counter()
        """Number of rows of each file."""
        self.chunks: Counter[MediaFile] = Counter()
        self._passed = np.zeros(size, np.int64)
        self._ranges = min(FINE, max(BINS, MAX_COUNTERS // max(1, size)))
        self._fine = np.zeros((size, self._ranges), np.uint32)
        self._sums = np.zeros((2, size), np.float64)

    def counting(self, chunks: Iterator[LabelledChunk]) -> Iterator[Labelled]:
        """Yield the rows while counting them."""
        every = np.arange(len(self._passed))
        for chunk in chunks:
            scores = chunk.scores.astype(np.float64)
            self.pictures += len(chunk.rows)
            self.lines[chunk.file] += len(chunk.rows)
            self.chunks[chunk.file] += 1
            self.labelled += int(chunk.passed.any(axis=1).sum())
            self._passed += chunk.passed.sum(axis=0)
            self._sums += scores.sum(axis=0), (scores**2).sum(axis=0)
            places_of = ((scores + 1) * (self._ranges / 2)).astype(np.int64)
            for places in places_of.clip(0, self._ranges - 1):
                self._fine[every, places] += 1
            yield from chunk.rows

    @property
    def given(self) -> int:
        return int(self._passed.sum())

    def report(self) -> dict[str, Any]:
        """Return the count, scores and rule of each label; of a tagger only of those that were
        given. `low` and `high` are the limits of the histograms in `bins`."""
        seen = np.flatnonzero(self._fine.any(axis=0))
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, BINS)
        width = -(-(last - first) // BINS)
        starts = np.arange(first, last, width)
        bins = np.add.reduceat(self._fine[:, :last], starts, axis=1)
        return {
            "pictures": self.pictures,
            "labelled": self.labelled,
            "labels_digest": self._context.labels.digest,
            "scale": self._context.texts.scale,
            "bias": self._context.texts.bias,
            "low": score_of(first, self._ranges),
            "high": score_of(int(starts[-1]) + width, self._ranges),
            "labels": [
                self._label_entry(at, name, bins[at])
                for at, name in enumerate(self._context.labels.names)
                if self._context.tags is None or self._passed[at]
            ],
        }

    def _label_entry(self, at: int, name: str, bins: NDArray[np.int64]) -> dict[str, Json]:
        rules = self._context.rules
        threshold = rules.thresholds[at]
        middle = deviation = None
        if self.pictures:
            half = int(np.searchsorted(self._fine[at].cumsum(), self.pictures / 2))
            middle = score_of(half + 0.5, self._ranges)
            mean, squares = self._sums[:, at] / self.pictures
            deviation = round(float(max(0.0, squares - mean**2) ** 0.5), 6)
        return {
            "label": name,
            "passed": int(self._passed[at]),
            "median": middle,
            "deviation": deviation,
            "threshold": None if np.isnan(threshold) else threshold,
            "from": rules.rules[at],
            "bins": bins.tolist(),
        }


def score_of(index: float, ranges: int = FINE) -> float:
    """Return the score at an index of a fine histogram."""
    return round(index / (ranges / 2) - 1, 6)


LINES, REPORT = "labels.jsonl", "label_report.json"
SPANS = "label_spans.jsonl"
FILES = {**{form: f"labels.{form}" for form in TABLES}, COCO: COCO_FILE}
"""Format → its file."""


@dataclass(kw_only=True, slots=True)
class LabelsWritten(RunEnd):
    """The result of a labelling run."""

    pictures: int = 0
    """Number of evaluated images and video frames."""
    labelled: int = 0
    """Number of images and frames with at least one label."""
    given: int = 0
    """Number of assigned labels."""
    labels: int = 0
    """Number of labels to choose from."""
    cut: tuple[str, ...] = ()
    """Label texts that are longer than the model reads."""
    others: list[str] = field(default_factory=list)
    """Names of the other files written to `OUT`, such as tables."""
    texts: list[TextFileCounts] = field(default_factory=list)
    """Number of text files for each form and place."""
    counts: list[dict[str, Json]] = field(default_factory=list)
    """Counts and score histogram of each label, as in the report."""

    @property
    def made(self) -> int:
        """Return the number of evaluated images and frames."""
        return self.pictures

    def to_json(self) -> dict[str, Json]:
        names = ("pictures", "labelled", "given", "labels")
        fields_by_name = {name: getattr(self, name) for name in names}
        return self.outcome({**fields_by_name, "warnings": list(self.notes())})

    def row(self) -> dict[str, Json]:
        counts = {"files": self.files, "pictures": self.pictures, "labelled": self.labelled}
        return {**counts, "given": self.given, "folder": str(self.out)}

    def line(self) -> str:
        line = f"{counted(self.labelled, 'image or frame')} of {self.pictures:,} given "
        line = f"{line}{counted(self.given, 'label')} in {self.out / LINES}"
        line += f" beside {', '.join(self.others)}" if self.others else ""
        for texts in self.texts:
            line += f", {texts_line(texts.record)}"
        return f"{line}{self.failed_suffix(LABELS)}"

    __repr__ = line

    def notes(self) -> Iterator[str]:
        """Yield notes for the user about the outputs."""
        if self.cut:
            more = f" and {len(self.cut) - 1} more" if len(self.cut) > 1 else ""
            yield f"label texts longer than the model reads, cut: {quoted(self.cut[0])}{more}"
        for texts in self.texts:
            yield from texts.notes()


def label_paths(job: Job) -> dict[str, str]:
    outputs_options = job.config.groups.outputs
    names = {"labels": LINES, "report": REPORT, "failures": "failures.jsonl", "logs": "logs"}
    names |= {form: file for form, file in FILES.items() if form in outputs_options.format}
    return {name: str(job.out / file) for name, file in names.items()}


def write_labels(job: Job, context: LabelContext) -> LabelsWritten:
    """Write the labels of all chunks with stored vectors. Raises EnvironmentFault."""
    written = LabelsWritten(
        out=job.out,
        files=job.requested,
        labels=len(context.labels.labels),
        cut=context.texts.cut,
        failures=failures_of(job),
        warned=warned_files(job),
    )
    counts = LabelCounts(context)
    own = GeneratedFiles(job.store, out=job.out)
    rows = counts.counting(label_chunks(job, context))
    own.renew(job.out / LINES, partial(write_jsonl, rows=rows))
    written.pictures, written.labelled = counts.pictures, counts.labelled
    written.given, written.chunks = counts.given, counts.chunks
    write_jsonl(job.out / "failures.jsonl", written.failures)
    lines = (media_line(f.file, counts.lines[f.file], f.medium) for f in job.files)
    write_proved(job.out, {MEDIA: lines}, job.store.url)
    report = counts.report()
    write_json(job.out / REPORT, report)
    written.counts = report["labels"]
    written.others = [REPORT, MEDIA, *_write_tables(job, context, own)]
    if any(job_file.medium.kind == "video" for job_file in job.files):
        own.renew(job.out / SPANS, partial(write_text, pieces=_span_lines(job, context)))
        written.others.append(SPANS)
    texts = GeneratedFiles(job.store, OF_LABELS, job.out)
    written.texts = write_texts(job, texts, partial(_captions, context))
    return written


def _write_tables(job: Job, context: LabelContext, own: GeneratedFiles) -> list[str]:
    """Write the requested tables, and those of an earlier run that nobody changed. Return the names
    of their files."""
    requested, names = job.config.groups.outputs.format, []
    for form, name in FILES.items():
        path = job.out / name
        if form not in requested and not own.has(name, digest_at(path)):
            continue
        names.append(name)
        if form == COCO:
            sized = _sized(job, context)
            own.renew(path, partial(write_coco, labels=context.labels.names, rows=sized))
        else:
            rows = (row for chunk in label_chunks(job, context) for row in chunk.rows)
            own.renew(path, partial(TABLES[form], rows=rows, kinds=KINDS))
    return names


def _sized(job: Job, context: LabelContext) -> Iterator[Sized]:
    for chunk in label_chunks(job, context):
        index = job.ledger.media_index(chunk.task.medium)
        if chunk.task.medium.kind == "image" and index is not None:
            yield chunk.rows[0], index.height, index.width


def _spans(job: Job, context: LabelContext, of: JobFile) -> Iterator[Span]:
    """Yield the spans of one video; an image is one span of no length."""
    chunks = list(label_chunks(job, context, file_tasks(job, of)))
    if context.tags is not None:
        yield from tag_spans(context, chunks)
        return
    rows = [row for chunk in chunks for row in chunk.rows]
    if of.medium.kind == "image":
        yield from (Span(start=0.0, end=0.0, labels=tuple(row.given)) for row in rows)
    else:
        frames = [(row.time or 0.0, row.given) for row in rows]
        yield from spans_of(frames, max((chunk.task.chunk.end for chunk in chunks), default=0.0))


def _span_lines(job: Job, context: LabelContext) -> Iterator[str]:
    for job_file in job.files:
        if job_file.medium.kind == "video":
            about = {"media_path": job_file.file.media_path, "source": job_file.file.source}
            for span in _spans(job, context, job_file):
                yield encoded({**about, **asdict(span)}) + "\n"


def _captions(context: LabelContext, job: Job, of: JobFile) -> list[Caption] | None:
    """Return the text file content of one file: its labels, or those of each span of a video. None
    if vectors are missing."""
    if not 0 < job.ledger.expected(of.medium) <= len([*file_tasks(job, of)]):
        return None
    return [
        Caption(
            media_path=of.file.media_path,
            source=of.file.source,
            start=span.start,
            end=span.end,
            caption=", ".join(span.labels),
            model="",
            prompt="",
            precision={},
            frames=(),
            features="",
            tokens=0,
            ended="stop",
        )
        for span in _spans(job, context, of)
    ]
