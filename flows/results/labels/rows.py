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
from flows.ledger.tasks import Medium, Task
from flows.media.labels import LabelSet
from flows.media.media_files import MediaFile
from flows.results.labels.judging import LabelRules, Passed, Scores, cosines_of
from flows.results.vectors import Made, made_of, made_vectors, shown_boxes, shown_width

FEWEST = 4
"""Labels below which it is not known what a level usually scores: the highest score counts."""
LEAST_SPREAD = 1e-6
"""Deviation of cosines below which all labels are alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """The cosines of images or frames."""

    best: Scores
    """Of the part that speaks most for each label."""
    whole: Scores
    """Of the whole picture."""
    at: NDArray[np.intp]
    """Shape (pictures, labels): which part that is; 0 is all of it."""


def whole_of(cosines: Scores) -> Pooled:
    """Return the cosines of pictures or frames that are not cut into tiles."""
    return Pooled(best=cosines, whole=cosines, at=np.zeros(cosines.shape, np.intp))


def pooled(cosines: Scores, levels: Sequence[int]) -> Pooled:
    """Return the cosines of one picture; its parts are of these levels, the first is all of it."""
    places = [np.flatnonzero(np.asarray(levels) == level) for level in sorted(set(levels))]
    members = max(places, key=lambda some: _standing_out(cosines[some]))
    at = members[cosines[members].argmax(axis=0)]
    best = cosines[at, np.arange(cosines.shape[1])]
    return Pooled(best=best[None], whole=cosines[:1], at=at[None])


def _standing_out(cosines: Scores) -> float:
    """Return how far the best label of one level stands out, in deviations of the labels."""
    best = cosines.max(axis=0)
    if len(best) < FEWEST:
        return float(best.max())
    return float((best.max() - np.median(best)) / max(float(best.std()), LEAST_SPREAD))


TASKS_A_BLOCK = 256
"""Chunks whose scores are in memory at once."""
DIGITS = 6
"""Digits of a score that are written: vectors in 16 bit have no more than three."""


@dataclass(frozen=True, kw_only=True)
class LabelContext:
    """Everything needed to label the images of a run."""

    labels: LabelSet
    texts: TextVectors
    judge: LabelRules
    top: int
    """Labels of a picture that are told, whether it is given them or not."""

    @cached_property
    def told(self) -> list[tuple[str, float | None, str]]:
        """Return of each label its name, threshold and rule, for the lines."""
        pairs = enumerate(zip(self.labels.names, self.judge.thresholds, strict=True))
        return [
            (name, None if math.isnan(threshold) else threshold, self.judge.why(at))
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


def judged_medium(
    job: Job, labelling: LabelContext, file: MediaFile, medium: Medium
) -> list[LabelledChunk]:
    """Return the labels of the chunks of one file that are there."""
    return list(judged(job, labelling, made_of(job, file, medium)))


def judged(
    job: Job, labelling: LabelContext, made: Iterable[Made] | None = None
) -> Iterator[LabelledChunk]:
    """Yield the labels of these chunks (None: of every one whose vectors are there), in order."""
    kept, left = job.ledger["embeddings"], iter(made_vectors(job) if made is None else made)
    while block := list(islice(left, TASKS_A_BLOCK)):
        records = kept.read_several([task["embeddings"] for _, task in block])
        found = [vectors_in(record) for record in records]
        widths = [shown_width(job, task) if task.is_cut else 0 for _, task in block]
        yield from judged_vectors(job.model.name, labelling, block, found, widths)


def judged_vectors(
    model: str,
    labelling: LabelContext,
    block: Sequence[Made],
    found: Sequence[Vectors],
    widths: Sequence[int],
) -> Iterator[LabelledChunk]:
    """Yield the labels of chunks, of each of which these vectors were found by that model, and
    whose pictures are shown so wide."""
    cosines = cosines_of(np.concatenate(found), labelling.texts)
    ends = np.cumsum([len(each) for each in found])[:-1]
    parts = [
        pooled(some, task.levels) if task.is_cut else whole_of(some)
        for (_, task), some in zip(block, np.split(cosines, ends), strict=True)
    ]
    scores = labelling.judge.scores(np.concatenate([part.best for part in parts]))
    passed = labelling.judge.passed(scores)
    ends = np.cumsum([len(part.best) for part in parts])[:-1]
    split = zip(np.split(scores, ends), np.split(passed, ends), strict=True)
    for (file, task), width, part, (some, given) in zip(block, widths, parts, split, strict=True):
        lines = _Making(model, labelling, file, task, width, part)
        rows = [lines.row(at, some[at], given[at]) for at in range(len(some))]
        yield LabelledChunk(file=file, task=task, rows=rows, scores=some, passed=given)


class _Making:
    """Builds the lines of one chunk."""

    def __init__(
        self,
        model: str,
        labelling: LabelContext,
        file: MediaFile,
        task: Task,
        width: int,
        part: Pooled,
    ) -> None:
        self._model = model
        self._labelling = labelling
        self._file = file
        self._task = task
        self._at = part.at.tolist()
        cut = task.is_cut
        self._whole = labelling.judge.scores(part.whole).tolist() if cut else None
        self._boxes = shown_boxes(task, width) if cut else []
        self._precision = {**task.namespaces.precision, "language": labelling.texts.precision}

    def row(self, at: int, scores: Scores, passed: Passed) -> Labelled:
        """Return the line of one picture or frame."""
        task, labelling = self._task, self._labelling
        ranked = np.argsort(-scores, kind="stable").tolist()
        told = {*ranked[: labelling.top], *np.flatnonzero(passed).tolist()}
        values, given = scores.tolist(), passed.tolist()
        return Labelled(
            media_path=self._file.media_path,
            source=self._file.source,
            time=None if task.medium.kind == "image" else task.chunk.times[at],
            labels=tuple(
                self._scored(at, place, values[place], given[place])
                for place in ranked
                if place in told
            ),
            top=labelling.told[ranked[0]][0],
            model=self._model,
            precision=self._precision,
            features=task["embeddings"],
            labels_digest=labelling.labels_digest,
            tiles=task.namespaces.tiles,
        )

    def _scored(self, at: int, place: int, score: float, passed: bool) -> Scored:
        name, threshold, why = self._labelling.told[place]
        rounded = round(score, DIGITS)
        return Scored(
            label=name,
            score=rounded,
            passed=passed,
            whole=rounded if self._whole is None else round(self._whole[at][place], DIGITS),
            box=self._boxes[self._at[at][place]] if self._boxes else None,
            threshold=threshold,
            why=why,
        )
