"""Computes what a sift run takes from vectors: scores of heads, and one vector per medium."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts import near_duplicates
from artifacts.errors import UsageError
from artifacts.vectors import vectors_in
from flows.console.display import Display
from flows.job.prepare import Job
from flows.options.sift import SiftOptions
from flows.options.vectors import VectorConfig
from flows.results.outputs import failures_of
from flows.results.sifted.heads import ScoreHead, read_head
from flows.results.sifted.marks import DIGITS, rounded
from flows.results.sifted.table import MarkedFiles, mark_groups
from flows.results.vectors import VectorsWritten, vector_tasks
from flows.running.run import LauncherMaker, make_vectors
from flows.running.run_observer import OnBegin


@dataclass(kw_only=True, slots=True)
class VectorMarks(VectorsWritten):
    """What the vectors of a run say of its media."""

    vectors_of: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    """Digest → the mean of its vectors, of length 1."""
    scores: dict[str, tuple[NDArray[np.float64], NDArray[np.float32]]] = field(default_factory=dict)
    """Digest → times of its vectors in seconds, and their scores [vectors, heads]."""

    def mark(self, found: MarkedFiles, heads: Sequence[str], similar: float | None) -> None:
        """Add the scores of heads to files and chunks, and near duplicates by vectors."""
        for row in found.rows:
            row |= self._scored(row["digest"], heads, -np.inf, np.inf)
        by_path = {(row["media_path"], row["source"]): row["digest"] for row in found.rows}
        for chunk in found.chunks:
            digest = by_path[chunk["media_path"], chunk["source"]]
            chunk |= self._scored(digest, heads, chunk["start"], chunk["end"])
        if similar is not None:
            mark_groups(found, self._groups(found, similar), "similar_group", "similar")

    def _scored(
        self, digest: str, heads: Sequence[str], start: float, end: float
    ) -> Mapping[str, float | None]:
        times, scores = self.scores.get(digest, (np.zeros(0), np.zeros((0, len(heads)))))
        at = np.round(times, DIGITS)  # as `start` and `end` are
        inside = scores[(at >= start) & (at < end)]
        means = inside.mean(axis=0) if len(inside) else [None] * len(heads)
        return {
            n: None if m is None else rounded(float(m)) for n, m in zip(heads, means, strict=True)
        }

    def _groups(self, found: MarkedFiles, threshold: float) -> NDArray[Any]:
        """Return the number of the group of each content; one without vectors is alone."""
        digests = [found.files[at].medium.digest for at in found.places()]
        known = [at for at, digest in enumerate(digests) if digest in self.vectors_of]
        groups = np.arange(len(digests)) + len(digests)
        if known:
            rows = np.stack([self.vectors_of[digests[at]] for at in known])
            groups[known] = near_duplicates.groups(rows, threshold)
        return groups


def vector_marks(
    config: VectorConfig, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin | None
) -> VectorMarks:
    """Compute the vectors of all media as `penstock embed` does, and score them. Raises
    PenstockError; finished records stay."""
    options = SiftOptions.of(config)
    heads = [read_head(name, file) for name, file in options.head.items()]
    if options.similar is not None:
        near_duplicates.require_extra()
    return make_vectors(
        config,
        display,
        partial(_places, heads),
        partial(_marks, heads),
        make_launcher,
        on_begin,
        "sift",
    )


def _places(heads: Sequence[ScoreHead], job: Job) -> dict[str, str]:
    """Return the output paths. Raises UsageError for a head of another model, before any vector is
    computed."""
    width = job.model.profile.feature_width
    for head in heads:
        if head.width != width:
            raise UsageError(
                f"--head {head.name} is for vectors of {head.width} values; those of "
                f"{job.model.name} have {width}",
                hint="Give the --model that the head was trained on",
            )
    return {"failures": str(job.out / "failures.jsonl"), "logs": str(job.out / "logs")}


def _marks(heads: Sequence[ScoreHead], job: Job) -> VectorMarks:
    found = VectorMarks(out=job.out, files=len(job.files) + len(job.failures))
    found.failures = failures_of(job)
    kept = job.ledger["embeddings"]
    for digest, tasks in groupby(vector_tasks(job), key=lambda one: one[1].medium.digest):
        if digest in found.vectors_of:
            continue  # another file with this content
        chunks = [task for _, task in tasks]
        parts = [
            vectors_in(record) for record in kept.read_several([t["embeddings"] for t in chunks])
        ]
        # The first vector of an image is of all of it; its tiles follow.
        rows = parts[0][:1] if chunks[0].medium.kind == "image" else np.concatenate(parts)
        times = [time for task in chunks for time in task.chunk.times]
        scores = [head.scores(rows) for head in heads]
        found.scores[digest] = (
            np.array(times[: len(rows)]),
            np.array(scores).T.reshape(len(rows), -1),
        )
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)).mean(axis=0)
        found.vectors_of[digest] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(
            np.float16
        )
        found.vectors += len(rows)
    return found
