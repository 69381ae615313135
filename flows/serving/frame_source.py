"""Decodes uploads for one job, and deletes their frames after a half has read them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from artifacts.packs import Record, RecordSet
from artifacts.records import read_record
from artifacts.schema import MediaIndex
from flows.job.prepare import Job
from flows.ledger.namespaces import Variant
from flows.ledger.tasks import Medium, Task, task_of
from flows.serving.decoders import Decoders
from flows.serving.half_worker import HalfWorker
from flows.serving.record_cache import RecordCacheFlusher
from flows.serving.temp_store import TempStore
from stages.frames.job import FramesItem
from stages.models.encoding import FRAMES_A_BATCH
from stages.process.live import Keyed


class FrameSource:
    """Decodes uploads for one job, and caches what was found in them."""

    def __init__(
        self, job: Job, decoders: Decoders, keeper: RecordCacheFlusher, temp_store: TempStore
    ) -> None:
        self._kind = job.pipeline[0].writes
        self._decoders = decoders
        self.namespaces = job.ledger.namespaces
        namespace = self.namespaces[self._kind]
        self._media = keeper.of(job.store, "media", namespace)
        self._frames = RecordSet(temp_store.store, self._kind, namespace)

    async def known(self, medium: Medium) -> MediaIndex | None:
        """Return the index of a medium that was decoded before, or None."""
        record = await self._media.read(medium.digest)
        return None if record is None else read_record(MediaIndex, record.meta)

    def keep(self, medium: Medium, index: MediaIndex) -> None:
        """Cache the index of a medium."""
        self._media.keep([Record(key=medium.digest, meta=index.to_json())])

    def tasks(
        self, medium: Medium, index: MediaIndex, variant: Variant | None = None
    ) -> list[Task]:
        """Return the chunks of a medium, by default in the variant of new records."""
        by = variant or self.namespaces
        return [task_of(medium, chunk, by) for chunk in index.chunks]

    async def decode(self, medium: Medium, half: HalfWorker) -> MediaIndex:
        """Decode a medium, store its frames for a half and return its index. Raises HttpRefusal."""
        item = FramesItem(medium.path, medium.digest, medium.kind)
        half.expect(1)
        # A running decoder is not cancelled: its process would have to be restarted.
        doing = asyncio.ensure_future(self._decoders.decode(item))
        doing.add_done_callback(lambda _: half.expect(-1))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            if not self._decoders.withdraw(item):
                doing.add_done_callback(lambda done: self._throw_away(medium, done))
            raise

    def weight(self, task: Task, half: HalfWorker) -> int:
        """Return a chunk's weight in a batch of a half: its pixels, or for a video its share of the
        frames that a batch may have."""
        pixels = task.chunk.height * task.chunk.width * len(task.chunk.times)
        frames = len(task.chunk.times) * half.batches.max_weight // FRAMES_A_BATCH
        return max(pixels, frames if task.medium.kind == "video" else 0)

    async def submit(
        self, task: Task, half: HalfWorker, key: str, request: Keyed, weight: int
    ) -> Any:
        """Have a half process a chunk's frames, and return the result. Raises HttpRefusal."""
        try:
            return await half.submit(key, request, weight)
        except BaseException:
            if not half.has(key):  # otherwise the half deletes the frames itself
                self.drop([task])
            raise

    def drop(self, tasks: Sequence[Task]) -> None:
        """Delete unused frames on a thread."""
        keys = [task[self._kind] for task in tasks]
        asyncio.get_running_loop().run_in_executor(None, self._drop, keys)

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._frames.look_up([key])
            self._frames.drop([key])

    def _throw_away(self, medium: Medium, doing: "asyncio.Future[MediaIndex]") -> None:
        if not doing.cancelled() and doing.exception() is None:
            self.drop(self.tasks(medium, doing.result()))
