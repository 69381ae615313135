"""Takes what was sent through decoding and a vision half, or finds in the store that it was before;
knows no labels and no HTTP.

Requests for one content share the work. Who goes away meanwhile leaves it to the others; where
nobody is left, what has not begun is not begun.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from artifacts.packs import Record, RecordSet
from artifacts.schema import MediaIndex
from artifacts.vectors import Vectors, vectors_in
from flows.job.prepare import Job
from flows.job.tasks import Medium, Task, task_of
from flows.running.calls import Calls
from flows.serving.decoders import Decoders
from flows.serving.half import Half
from flows.serving.keeping import Keeper, Kept
from flows.serving.metrics import Metrics
from flows.serving.scratch import Scratch
from flows.serving.uploads import Upload

Made = TypeVar("Made")


class Shared(Generic[Made]):
    """Work that several requests wait for."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Made]] = {}
        self._wanted: dict[str, int] = {}

    async def once(self, key: str, make: Callable[[], Awaitable[Made]]) -> Made:
        """Return what `make` gives, which is called once for all that ask for the key meanwhile."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(self._made(key, make))
        self._wanted[key] = self._wanted.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        finally:
            self._wanted[key] -= 1
            if not self._wanted[key]:
                del self._wanted[key]
                if not task.done():
                    task.cancel()

    async def _made(self, key: str, make: Callable[[], Awaitable[Made]]) -> Made:
        try:
            return await make()
        finally:
            self._tasks.pop(key, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """The vectors of one medium."""

    index: MediaIndex
    tasks: tuple[Task, ...]
    vectors: tuple[Vectors, ...]
    """Those of each chunk."""
    cached: bool
    """Whether the store had them."""


class Eyes:
    """The decoders and the vision half of one job."""

    def __init__(
        self,
        job: Job,
        half: Half,
        decoders: Decoders,
        keeper: Keeper,
        scratch: Scratch,
        metrics: Metrics,
    ) -> None:
        first, last = job.pipeline
        self._job = job
        self._half = half
        self._decoders = decoders
        self._metrics = metrics
        self._calls = Calls(job)
        self._stage = last
        self.namespaces = job.ledger.namespaces
        self._media = keeper.of(job.store, "media", self.namespaces[first.writes])
        self._kept: Kept = keeper.of(job.store, last.writes, self.namespaces[last.writes])
        self._frames = RecordSet(scratch.store, first.writes, self.namespaces[first.writes])
        self._shared: Shared[Seen] = Shared()

    async def see(self, upload: Upload) -> Seen:
        """Return the vectors of what was sent. Raises Refused."""
        medium = Medium(digest=upload.digest, path=str(upload.path), kind=upload.kind, prompt="")
        is_ours = False

        async def make() -> Seen:
            nonlocal is_ours
            is_ours = True
            try:
                return await self._make(medium)
            finally:
                upload.remove()

        try:
            found = await self._stored(medium)
            if found is None:
                return await self._shared.once(medium.digest, make)
            self._metrics.from_store()
            return found
        finally:
            if not is_ours:  # else others may wait for what is made of it
                upload.remove()

    async def _stored(self, medium: Medium) -> Seen | None:
        record = await self._media.read(medium.digest) if medium.digest in self._media else None
        if record is None:
            return None
        index = MediaIndex.from_json(record.meta)
        tasks = self._tasks(medium, index)
        if not all(task[self._stage.writes] in self._kept for task in tasks):
            return None
        records = [await self._kept.read(task[self._stage.writes]) for task in tasks]
        if any(each is None for each in records):
            return None
        return _seen(index, tasks, [each for each in records if each is not None], cached=True)

    def _tasks(self, medium: Medium, index: MediaIndex) -> list[Task]:
        return [task_of(medium, index, chunk, self.namespaces) for chunk in index.chunks]

    async def _make(self, medium: Medium) -> Seen:
        index = await self._cut(medium)
        tasks = self._tasks(medium, index)
        records: list[Record] = await asyncio.gather(*map(self._work, tasks))
        self._media.keep([Record(key=medium.digest, meta=index.to_json())])
        self._kept.keep(records)
        return _seen(index, tasks, records, cached=False)

    async def _cut(self, medium: Medium) -> MediaIndex:
        """Return what is in a medium, its frames stored."""
        told = {"path": medium.path, "digest": medium.digest, "kind": medium.kind, "wanted": None}
        self._half.note_coming(1)
        # A decoder that has begun is not to be stopped: it would have to be started anew.
        cutting = asyncio.ensure_future(self._decoders.cut(told))
        cutting.add_done_callback(lambda _: self._half.note_coming(-1))
        try:
            return await asyncio.shield(cutting)
        except asyncio.CancelledError:
            cutting.add_done_callback(lambda done: self._throw_away(medium, done))
            raise

    def _throw_away(self, medium: Medium, cutting: "asyncio.Future[MediaIndex]") -> None:
        if not cutting.cancelled() and cutting.exception() is None:
            self._drop(self._tasks(medium, cutting.result()))

    async def _work(self, task: Task) -> Record:
        key = task[self._stage.writes]
        weight = task.chunk.height * task.chunk.width * len(task.chunk.times)
        try:
            member = self._calls.member(self._stage, task)
            record: Record = await self._half.make(key, member, weight)
        except BaseException:
            if not self._half.has(key):  # which deletes the frames itself
                self._drop([task])
            raise
        return record

    def _drop(self, tasks: Sequence[Task]) -> None:
        """Delete frames that nobody is going to look at."""
        kind = self._job.pipeline[0].writes
        for task in tasks:
            self._frames.find([task[kind]])
            self._frames.drop([task[kind]])


def _seen(
    index: MediaIndex, tasks: Sequence[Task], records: Sequence[Record], *, cached: bool
) -> Seen:
    return Seen(
        index=index,
        tasks=tuple(tasks),
        vectors=tuple(map(vectors_in, records)),
        cached=cached,
    )
