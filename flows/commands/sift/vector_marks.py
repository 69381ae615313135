"""Marks near duplicates by vectors: each medium has one, which a model computes."""

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from artifacts.index import near_duplicates
from artifacts.records.vectors import vectors_in
from flows.commands.sift.marks import MarkedFiles, mark_copies
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.options.vectors import VectorConfig
from flows.execution.run import LauncherMaker, VectorOutputs, make_vectors
from flows.execution.run_observer import OnBegin
from flows.outputs.vectors import VectorsWritten, vector_tasks
from flows.outputs.write import failures_of


@dataclass(kw_only=True, slots=True)
class VectorMarks(VectorsWritten):
    """What the vectors of a run say of its media."""

    vectors_of: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    """Digest → the mean of its vectors, of length 1."""

    def mark(self, files: MarkedFiles, similar: float | None) -> None:
        """Mark near duplicates by vectors."""
        if similar is None:
            return
        zeros = np.zeros(next(iter(self.vectors_of.values()), np.zeros(1)).shape, np.float16)
        rows = [self.vectors_of.get(row["digest"], zeros) for row in files.rows]
        alike = near_duplicates.Alike(vectors=np.array(rows), threshold=similar)
        mark_copies(files, "similar", alike)


def vector_marks(
    config: VectorConfig, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin | None
) -> VectorMarks:
    """Compute the vectors of all media as `penstock embed` does. Raises PenstockError; finished
    records stay."""
    outputs = VectorOutputs(_places, _marks, command="sift")
    return make_vectors(config, display, outputs, make_launcher, on_begin)


def _places(job: Job) -> dict[str, str]:
    return {"failures": str(job.out / "failures.jsonl"), "logs": str(job.out / "logs")}


def _marks(job: Job) -> VectorMarks:
    marks = VectorMarks(out=job.out, files=job.requested)
    marks.failures = failures_of(job)
    records = job.ledger["embeddings"]
    for digest, tasks in groupby(vector_tasks(job), key=lambda pair: pair[1].medium.digest):
        if digest in marks.vectors_of:
            continue  # another file with this content
        chunks = [task for _, task in tasks]
        keys = [task["embeddings"] for task in chunks]
        parts = [vectors_in(record) for record in records.read_several(keys)]
        # The first vector of an image is of all of it; its tiles follow.
        rows = parts[0][:1] if chunks[0].medium.kind == "image" else np.concatenate(parts)
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)).mean(axis=0)
        marks.vectors_of[digest] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(
            np.float16
        )
        marks.vectors += len(rows)
    return marks
