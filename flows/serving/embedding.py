"""Embeds an uploaded medium with decoders and a vision half, or reads its vectors from the store.

Requests for the same content share the work. If one client disconnects, the others still get the
result. If all disconnect, work that has not begun is dropped.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.packs import Record
from artifacts.schema import MediaIndex
from artifacts.vectors import Vectors, vectors_in
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task
from flows.running.stage_calls import StageCallBuilder
from flows.serving.frame_source import FrameSource
from flows.serving.half_worker import HalfWorker
from flows.serving.metrics import Metrics
from flows.serving.record_cache import RecordCacheFlusher
from flows.serving.single_flight import SingleFlight
from flows.serving.uploads import Upload


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedMedium:
    """The vectors of one medium."""

    index: MediaIndex
    tasks: tuple[Task, ...]
    vectors: tuple[Vectors, ...]
    """One array per chunk."""
    cached: bool
    """Whether they were read from the store."""


class MediumEmbedder:
    """The decoders and the vision half of one job."""

    def __init__(
        self,
        job: Job,
        half: HalfWorker,
        frames: FrameSource,
        keeper: RecordCacheFlusher,
        metrics: Metrics,
    ) -> None:
        self._stage = job.pipeline[-1]
        self._half = half
        self._frames = frames
        self._metrics = metrics
        self._calls = StageCallBuilder(job)
        self.namespaces = job.ledger.namespaces
        kind = self._stage.writes
        self._variants = job.ledger.answering_variants()
        self._kept = keeper.of(job.store, kind, *(each[kind] for each in self._variants))
        self._shared: SingleFlight[EmbeddedMedium] = SingleFlight()

    async def embed(self, upload: Upload) -> EmbeddedMedium:
        """Return the vectors of an upload. Raises HttpRefusal."""
        medium = Medium(digest=upload.digest, path=str(upload.path), kind=upload.kind, prompt="")
        try:
            found = await self._stored(medium)
        except BaseException:
            upload.remove()
            raise
        if found is None:
            return await self._shared.once_of(upload, medium.digest, lambda: self._make(medium))
        upload.remove()
        self._metrics.from_store()
        return found

    async def _stored(self, medium: Medium) -> EmbeddedMedium | None:
        index = await self._frames.known(medium)
        if index is None:
            return None
        for variant in self._variants:
            tasks = self._frames.tasks(medium, index, variant)
            keys = [task[self._stage.writes] for task in tasks]
            if not all(key in self._kept for key in keys):
                continue
            records = [found for key in keys if (found := await self._kept.read(key)) is not None]
            if len(records) == len(keys):
                return _embedded(index, tasks, records, cached=True)
        return None

    async def _make(self, medium: Medium) -> EmbeddedMedium:
        index = await self._frames.decode(medium, self._half)
        tasks = self._frames.tasks(medium, index)
        records: list[Record] = await asyncio.gather(*map(self._work, tasks))
        self._frames.keep(medium, index)
        self._kept.keep(records)
        return _embedded(index, tasks, records, cached=False)

    async def _work(self, task: Task) -> Record:
        item, key = self._calls.encode_item(self._stage, task), task[self._stage.writes]
        weight = self._frames.weight(task, self._half)
        record: Record = await self._frames.submit(task, self._half, key, item, weight)
        return record


def _embedded(
    index: MediaIndex, tasks: Sequence[Task], records: Sequence[Record], *, cached: bool
) -> EmbeddedMedium:
    return EmbeddedMedium(
        index=index,
        tasks=tuple(tasks),
        vectors=tuple(map(vectors_in, records)),
        cached=cached,
    )
