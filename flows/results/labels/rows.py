"""Makes the lines of labels of what is in the store; runs no model."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from artifacts.labels import Labelled, Scored
from artifacts.text_vectors import TextVectors
from artifacts.vectors import vectors_in
from flows.job.labels import LabelSet
from flows.job.prepare import Job
from flows.job.sources import MediaFile
from flows.job.tasks import Task
from flows.results.labels.judging import Judge, Passed, Scores, cosines_of

TASKS_A_BLOCK = 256
"""Chunks whose scores are in memory at once."""
DIGITS = 6
"""Digits of a score that are written: vectors in 16 bit have no more than three."""
Made = tuple[MediaFile, Task]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelling:
    """All by which the pictures of a run are labelled."""

    labels: LabelSet
    texts: TextVectors
    judge: Judge
    top: int
    """Labels of a picture that are told, whether it is given them or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The labels of one chunk's frames."""

    file: MediaFile
    task: Task
    rows: list[Labelled]
    scores: Scores
    passed: Passed


def made_of(job: Job) -> Iterator[Made]:
    """Yield the chunks whose vectors are there, in source order."""
    kept = job.ledger["embeddings"]
    for file, medium in zip(job.files, job.contents, strict=True):
        for task in job.ledger.tasks([medium]):
            if task["embeddings"] in kept:
                yield file, task


def judged(job: Job, labelling: Labelling) -> Iterator[Judged]:
    """Yield the labels of every chunk whose vectors are there, in source order."""
    kept, left = job.ledger["embeddings"], made_of(job)
    while block := list(islice(left, TASKS_A_BLOCK)):
        vectors = [vectors_in(kept.read(task["embeddings"])) for _, task in block]
        scores = labelling.judge.scores(cosines_of(np.concatenate(vectors), labelling.texts))
        passed = labelling.judge.passed(scores)
        ends = np.cumsum([len(each) for each in vectors])[:-1]
        pairs = zip(block, np.split(scores, ends), np.split(passed, ends), strict=True)
        for (file, task), some, given in pairs:
            rows = [_row(job, labelling, file, task, at, some, given) for at in range(len(some))]
            yield Judged(file=file, task=task, rows=rows, scores=some, passed=given)


def _row(
    job: Job,
    labelling: Labelling,
    file: MediaFile,
    task: Task,
    at: int,
    scores: Scores,
    passed: Passed,
) -> Labelled:
    ranked = np.argsort(-scores[at], kind="stable")
    told = [*ranked[: labelling.top], *np.flatnonzero(passed[at])]
    places = sorted(set(map(int, told)), key=lambda place: (-scores[at, place], place))
    still = task.medium.kind == "image"
    return Labelled(
        media_path=file.media_path,
        source=file.source,
        time=None if still else task.chunk.times[at],
        labels=tuple(_scored(labelling, place, scores[at], passed[at]) for place in places),
        top=labelling.labels.names[int(ranked[0])],
        model=job.model.name,
        precision={**task.namespaces.precision, "language": labelling.texts.precision},
        features=task["embeddings"],
        labels_digest=labelling.labels.digest,
    )


def _scored(labelling: Labelling, place: int, scores: Scores, passed: Passed) -> Scored:
    judge, score = labelling.judge, round(float(scores[place]), DIGITS)
    threshold = judge.thresholds[place]
    return Scored(
        label=labelling.labels.names[place],
        score=score,
        passed=bool(passed[place]),
        whole=score,
        box=None,
        threshold=None if np.isnan(threshold) else threshold,
        why=judge.why(place),
    )
