"""Decodes uploads for one job, and deletes their frames after a half has read them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from artifacts.packs import Record, RecordSet
from artifacts.schema import MediaIndex
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task, task_of
from flows.serving.decoders import Decoders
from flows.serving.half_worker import HalfWorker
from flows.serving.keeping import RecordCacheFlusher
from flows.serving.scratch import TempStore
from stages.frames.job import FramesItem
from stages.models.encoding import FRAMES_A_BATCH
from stages.process.live import Keyed


class FrameSource:
    """The decoders of one job, and their results."""

    def __init__(
        self, job: Job, decoders: Decoders, keeper: RecordCacheFlusher, scratch: TempStore
    ) -> None:
        self._kind = job.pipeline[0].writes
        self._decoders = decoders
        self.namespaces = job.ledger.namespaces
        namespace = self.namespaces[self._kind]
        self._media = keeper.of(job.store, "media", namespace)
        self._frames = RecordSet(scratch.store, self._kind, namespace)

    async def known(self, medium: Medium) -> MediaIndex | None:
        """Return what was found in a medium before, if it was looked at."""
        record = await self._media.read(medium.digest)
        return None if record is None else MediaIndex.from_json(record.meta)

    def keep(self, medium: Medium, index: MediaIndex) -> None:
        """Remember what was found in a medium."""
        self._media.keep([Record(key=medium.digest, meta=index.to_json())])

    def tasks(self, medium: Medium, index: MediaIndex) -> list[Task]:
        """Return the chunks of a medium."""
        return [task_of(medium, index, chunk, self.namespaces) for chunk in index.chunks]

    async def cut(self, medium: Medium, half: HalfWorker) -> MediaIndex:
        """Return what is in a medium, its frames stored for a half. Raises Refused."""
        told = FramesItem(medium.path, medium.digest, medium.kind)
        half.expect(1)
        # A decoder that has begun is not to be stopped: it would have to be started anew.
        doing = asyncio.ensure_future(self._decoders.cut(told))
        doing.add_done_callback(lambda _: half.expect(-1))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            if not self._decoders.withdraw(told):
                doing.add_done_callback(lambda done: self._throw_away(medium, done))
            raise

    def weight(self, task: Task, half: HalfWorker) -> int:
        """Return what a chunk weighs in a batch of a half: its pixels, or its part of the frames
        that a batch may have."""
        pixels = task.chunk.height * task.chunk.width * len(task.chunk.times)
        frames = len(task.chunk.times) * half.batches.most_weight // FRAMES_A_BATCH
        return max(pixels, frames if task.medium.kind == "video" else 0)

    async def given(
        self, task: Task, half: HalfWorker, key: str, member: Keyed, weight: int
    ) -> Any:
        """Return what a half makes of the frames of a chunk. Raises Refused."""
        try:
            return await half.make(key, member, weight)
        except BaseException:
            if not half.has(key):  # which deletes the frames itself
                self.drop([task])
            raise

    def drop(self, tasks: Sequence[Task]) -> None:
        """Have a thread delete frames that nobody is going to look at."""
        keys = [task[self._kind] for task in tasks]
        asyncio.get_running_loop().run_in_executor(None, self._drop, keys)

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._frames.find([key])
            self._frames.drop([key])

    def _throw_away(self, medium: Medium, doing: "asyncio.Future[MediaIndex]") -> None:
        if not doing.cancelled() and doing.exception() is None:
            self.drop(self.tasks(medium, doing.result()))
