"""Builds the JSON lines of labels from the store. Runs no model."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from artifacts.labels import Labelled, Scored
from artifacts.text_vectors import TextVectors
from artifacts.vectors import Vectors, vectors_in
from flows.job.prepare import Job
from flows.ledger.tasks import Task
from flows.media.labels import LabelSet
from flows.media.media_files import MediaFile
from flows.results.labels.rules import LabelRules, Passed, Scores, cosines_of
from flows.results.vectors import FileTask, shown_boxes, shown_width, vector_tasks

MIN_LABELS = 4
"""With fewer labels, levels are compared by their highest score, not by deviation."""
MIN_SPREAD = 1e-6
"""Lower bound of the standard deviation of cosines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """The cosines of images or frames."""

    best: Scores
    """Highest cosine of any part, for each label."""
    whole: Scores
    """Cosines of the whole image."""
    at: NDArray[np.intp]
    """Shape (images, labels): index of the part in `best`; 0 is the whole image."""


def whole_of(cosines: Scores) -> Pooled:
    """Return the cosines of images or frames without tiles."""
    return Pooled(best=cosines, whole=cosines, at=np.zeros(cosines.shape, np.intp))


def pooled(cosines: Scores, levels: Sequence[int]) -> Pooled:
    """Return the cosines of one image from those of its parts. `levels`: tile level of each part;
    the first part is the whole image."""
    places = [np.flatnonzero(np.asarray(levels) == level) for level in sorted(set(levels))]
    members = max(places, key=lambda some: _standing_out(cosines[some]))
    at = members[cosines[members].argmax(axis=0)]
    best = cosines[at, np.arange(cosines.shape[1])]
    return Pooled(best=best[None], whole=cosines[:1], at=at[None])


def _standing_out(cosines: Scores) -> float:
    """Return the distance of the best label of a level from the median, in deviations."""
    best = cosines.max(axis=0)
    if len(best) < MIN_LABELS:
        return float(best.max())
    return float((best.max() - np.median(best)) / max(float(best.std()), MIN_SPREAD))


TASKS_PER_BLOCK = 256
"""Number of chunks whose scores are in memory at once."""
DIGITS = 6
"""Decimal digits written per score; 16-bit vectors have only three."""


@dataclass(frozen=True, kw_only=True)
class LabelContext:
    """Everything needed to label the images of a run."""

    labels: LabelSet
    texts: TextVectors
    rules: LabelRules
    top: int
    """Number of labels written per image, even if it does not get them."""

    @cached_property
    def described(self) -> list[tuple[str, float | None, str]]:
        """Return the name, threshold and rule of each label, for the output rows."""
        pairs = enumerate(zip(self.labels.names, self.rules.thresholds, strict=True))
        return [
            (name, None if math.isnan(threshold) else threshold, self.rules.why(at))
            for at, (name, threshold) in pairs
        ]

    @cached_property
    def labels_digest(self) -> str:
        return self.labels.digest


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledChunk:
    """The labels of one chunk's frames."""

    file: MediaFile
    task: Task
    rows: list[Labelled]
    scores: Scores
    passed: Passed


def label_chunks(
    job: Job, context: LabelContext, made: Iterable[FileTask] | None = None
) -> Iterator[LabelledChunk]:
    """Yield the labels of these chunks, in order. None: all chunks with stored vectors."""
    kept, left = job.ledger["embeddings"], iter(vector_tasks(job) if made is None else made)
    while block := list(islice(left, TASKS_PER_BLOCK)):
        records = kept.read_several([task["embeddings"] for _, task in block])
        found = [vectors_in(record) for record in records]
        widths = [shown_width(job, task) if task.is_cut else 0 for _, task in block]
        yield from label_vectors(job.model.name, context, block, found, widths)


def label_vectors(
    model: str,
    context: LabelContext,
    block: Sequence[FileTask],
    found: Sequence[Vectors],
    widths: Sequence[int],
) -> Iterator[LabelledChunk]:
    """Yield the labels of chunks. `found`: vectors of each chunk by this model. `widths`: displayed
    width of each image in pixels."""
    cosines = cosines_of(np.concatenate(found), context.texts)
    ends = np.cumsum([len(each) for each in found])[:-1]
    parts = [
        pooled(some, task.levels) if task.is_cut else whole_of(some)
        for (_, task), some in zip(block, np.split(cosines, ends), strict=True)
    ]
    scores = context.rules.scores(np.concatenate([part.best for part in parts]))
    passed = context.rules.passed(scores)
    ends = np.cumsum([len(part.best) for part in parts])[:-1]
    split = zip(np.split(scores, ends), np.split(passed, ends), strict=True)
    for chunk, width, part, (some, given) in zip(block, widths, parts, split, strict=True):
        rows = _rows(model, context, chunk, width, part, some, given)
        yield LabelledChunk(file=chunk[0], task=chunk[1], rows=rows, scores=some, passed=given)


def _rows(
    model: str,
    context: LabelContext,
    chunk: FileTask,
    width: int,
    part: Pooled,
    scores: Scores,
    passed: Passed,
) -> list[Labelled]:
    """Return the output rows of one chunk, one per image or frame."""
    file, task = chunk
    whole = context.rules.scores(part.whole).tolist() if task.is_cut else None
    boxes = shown_boxes(task, width) if task.is_cut else []
    values, given, best = scores.tolist(), passed.tolist(), part.at.tolist()

    def scored(at: int, index: int) -> Scored:
        name, threshold, why = context.described[index]
        rounded = round(values[at][index], DIGITS)
        return Scored(
            label=name,
            score=rounded,
            passed=given[at][index],
            whole=rounded if whole is None else round(whole[at][index], DIGITS),
            box=boxes[best[at][index]] if boxes else None,
            threshold=threshold,
            why=why,
        )

    def row(at: int) -> Labelled:
        ranked = np.argsort(-scores[at], kind="stable").tolist()
        described = {*ranked[: context.top], *np.flatnonzero(passed[at]).tolist()}
        return Labelled(
            media_path=file.media_path,
            source=file.source,
            time=None if task.medium.kind == "image" else task.chunk.times[at],
            labels=tuple(scored(at, index) for index in ranked if index in described),
            top=context.described[ranked[0]][0],
            model=model,
            precision={**task.namespaces.precision, "language": context.texts.precision},
            features=task["embeddings"],
            labels_digest=context.labels_digest,
            tiles=task.namespaces.tiles,
        )

    return [row(at) for at in range(len(scores))]
