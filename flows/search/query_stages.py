"""Computes the vectors of queries, and of texts that measure an index, in stages of their own.

An image goes through the stages of `penstock embed`, with the vision half alone; a text goes
through the text half alone. The module itself loads no model.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import MediaError
from artifacts.index.manifest import Maker, Manifest
from artifacts.index.writing import refuse_other, refuse_other_halves
from artifacts.keys import digest_of
from artifacts.tiles import OFF
from artifacts.vectors import Vectors, vectors_in
from flows.console.display import Display
from flows.job.pass_mode import replanned_once
from flows.job.prepare import Job, prepare_without_media
from flows.machine.launch import DirectLauncher
from flows.options.vectors import VectorConfig
from flows.pipelines import LABEL
from flows.results.outputs import failures_of
from flows.results.vectors import VectorsWritten, vector_tasks
from flows.running.run import make_vectors, stopped_in_order
from flows.running.run_observer import RunObserver


def maker_of(job: Job, width: int) -> Maker:
    """Return the model and settings that determine the vectors of a job."""
    settings = job.model.best("vision")
    versions_of = [stage.output_version for stage in job.pipeline]
    return Maker(
        model=job.model.name,
        revision=job.config.revision,
        half=job.model.digests["vision"],
        recipe=digest_of([versions_of, settings.key_fields]),
        precision=settings.label,
        width=width,
        text_half=job.model.digests["language"],
    )


def read_texts(
    config: VectorConfig, texts: Sequence[str], display: Display, folder: Path, maker: Maker
) -> Vectors:
    """Return the vector of each text, computed by the text half alone or read from the store.
    Raises PenstockError, also if the text half is not that of `maker`, which made the index in
    `folder`."""

    def attempt() -> Vectors:
        observer = RunObserver(display)
        with tempfile.TemporaryDirectory(prefix="penstock-search-") as out, stopped_in_order():
            launcher = DirectLauncher(observer.on_event)
            job = prepare_without_media(replace(config, out=out, tiles=OFF), launcher, LABEL)
            refuse_other_halves(folder, maker, maker_of(job, maker.width))
            with observer.pipeline_for_job(job, launcher, "searching in", outputs={}) as runner:
                return runner.texts.make([[text] for text in texts]).vectors

    return replanned_once(attempt, display.print_line)


def image_vector(
    config: VectorConfig, manifest: Manifest, folder: Path, name: str, display: Display
) -> NDArray[np.float32]:
    """Return the vector of an image, computed by the vision half alone or read from the store.
    Raises PenstockError."""
    vectors: list[Vectors] = []

    def check(job: Job) -> dict[str, str]:
        refuse_other(folder, manifest.maker, maker_of(job, manifest.maker.width))
        return {}

    def collect(job: Job) -> VectorsWritten:
        kept = job.ledger["embeddings"]
        vectors.extend(vectors_in(kept.read(t["embeddings"])) for _, t in vector_tasks(job))
        return VectorsWritten(out=job.out, files=1, failures=failures_of(job))

    with tempfile.TemporaryDirectory(prefix="penstock-search-") as out:
        request = replace(config, sources=(name,), out=out)
        written = make_vectors(request, display, check, collect)
    if not vectors:
        failure = written.failures[0]
        raise MediaError(f"{name}: {failure.message}", kind=failure.error, hint=failure.hint)
    found: NDArray[np.float32] = vectors[0][0]
    return found
