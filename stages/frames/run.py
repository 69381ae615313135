"""The frames stage: turns media files into stored chunks of RGB frames.

Each worker thread holds one chunk, or one pack of images, and stores it before it goes on. Memory
is therefore bounded, however long the videos and however slow the disk.

In a run with waves, the process stays: the media of the first wave are in its job, and those of
each further wave are sent in a message.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import count, takewhile
from typing import TYPE_CHECKING

from artifacts.disk.json_records import read_record
from artifacts.records.claims import POLL_SECONDS, WorkClaims, claims_at
from artifacts.records.packs import refresh_together
from artifacts.records.store import open_store
from artifacts.schema import ChunkIndex, MediaIndex
from stages.frames import PACK_BYTES
from stages.frames.chunk import Chunk, Damage
from stages.frames.frame_recorder import FrameRecorder, Watchdog
from stages.frames.image import read_image
from stages.frames.job import FramesItem, FramesJob
from stages.process.events import EventReporter
from stages.process.host_memory import cores
from stages.process.job import JobFields, parse_job
from stages.process.requests import Requests

if TYPE_CHECKING:
    from stages.frames.timeline import ChunkPlan
    from stages.frames.video import Video
with contextlib.suppress(ModuleNotFoundError):  # images need no PyAV
    # Imported before memory is counted.
    import stages.frames.video  # noqa: F401

PACK_RECORDS = 64
"""Most images that are stored together."""


def run(fields: JobFields, report: EventReporter) -> None:
    """Process every medium of the job, and every one that is sent, that is not stored yet.

    A medium that cannot be used is recorded as failed, and the others continue. Raises
    EnvironmentFault for a fault of the store or a disk.
    """
    job, watchdog = parse_job(FramesJob, fields), Watchdog()
    stage = Cutting(job, report, watchdog)
    with (
        watchdog,
        claims_at(stage.store, *stage.record_sets.all) as stage.claims,
        ThreadPoolExecutor(max(1, job.workers), thread_name_prefix="frames") as pool,
    ):
        try:
            for media in media_of(job, report):
                stage.cut(media, pool)
        finally:
            stage.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def media_of(job: FramesJob, report: EventReporter) -> Iterator[Sequence[FramesItem]]:
    """Yield the media of the job, then those of each message."""
    yield job.media
    if not job.requests:
        return
    with Requests(job.requests, FramesItem, report) as sent:
        for batches in sent:
            yield [request.item for batch in batches for request in batch]
            batches.clear()  # lets go of the requests: what has no answer now is returned
    sent.close()


class Cutting:
    """One job: its record sets and the remaining work."""

    def __init__(self, job: FramesJob, report: EventReporter, watchdog: Watchdog) -> None:
        self.store = open_store(job.store)
        self._job = job
        self.record_sets = FrameRecorder(self.store, job.namespace, report, watchdog)
        self.claims: WorkClaims
        """Claims of media: which run processes which."""
        self.report = report
        self.stop = threading.Event()
        """Set when workers must end after their current chunk."""
        self._to_do: dict[str, FramesItem] = {}
        """Media that this run has not claimed yet."""
        self._lock = threading.Lock()
        self._items: dict[str, int] = {}
        """Digest of a medium of this message → number of chunks that are made of it."""
        self._earlier = 0
        """Number of chunks of earlier messages."""
        self._threads = 1

    def cut(self, media: Sequence[FramesItem], pool: ThreadPoolExecutor) -> None:
        """Process those of these media that are not stored yet."""
        refresh_together(*self.record_sets.all)  # what earlier waves left may be deleted by now
        missing = [m for m in media if self.record_sets.is_missing(m)]
        # Two files with the same content are one medium.
        self._to_do = {medium.digest: medium for medium in missing}
        self._earlier += sum(self._items.values())
        self._items = {m.digest: len(m.chunk_indexes or (0,)) for m in missing}
        self._answer(m.digest for m in media if m.digest not in self._to_do)
        while self._to_do:
            before = len(self._to_do)
            futures = [pool.submit(task) for task in self._tasks(max(1, self._job.workers))]
            for future in as_completed(futures):
                future.result()
            if len(self._to_do) == before:  # other runs are processing all of them
                time.sleep(POLL_SECONDS)

    def _answer(self, digests: Iterable[str]) -> None:
        """Answer for these media, if they were sent: all their records are stored."""
        if self._job.requests:
            for digest in digests:
                self.report.answered(media=digest)

    def _tasks(self, workers: int) -> list[Callable[[], None]]:
        """Return the next tasks of the workers: one video each, or a group of images."""
        media = list(self._to_do.values())
        self._to_do = {}
        videos = [m for m in media if m.kind == "video"]
        images = [m for m in media if m.kind == "image"]
        self._threads = max(1, cores() // max(1, min(workers, len(videos))))
        size = min(PACK_RECORDS, max(1, -(-len(images) // workers)))
        groups = [images[at : at + size] for at in range(0, len(images), size)]
        self.report.total(sum(self._items.values()), self._earlier)
        return [
            *(partial(self.cut_video, medium) for medium in videos),
            *(partial(self.cut_images, group) for group in groups),
        ]

    @contextlib.contextmanager
    def _claimed(self, media: Iterable[FramesItem]) -> Iterator[list[FramesItem]]:
        """Claim media until the block ends, and give those granted. Others are retried later."""
        claimed = []
        for medium in media:
            is_granted = self.claims.take(partial(self.record_sets.missing_digests, medium))
            if is_granted:
                claimed.append(medium)
            elif is_granted is None:
                self._to_do[medium.digest] = medium
            else:
                self._items[medium.digest] = 0
                self._answer([medium.digest])
        try:
            yield claimed
        finally:
            self.claims.done(medium.digest for medium in claimed)

    def cut_video(self, medium: FramesItem) -> None:
        """Store the missing chunks of a video one by one, then its index."""
        if self.stop.is_set():
            return
        from stages.frames.video import Video

        sampling = self._job.sampling
        with self._claimed([medium]) as claimed:
            if not claimed:
                return
            with (
                self.record_sets.failing(medium) as path,
                Video(path, threads=self._threads, deinterlace=sampling.deinterlace) as video,
            ):
                medium.check()
                is_planned = sampling.clip_frames or medium.digest in self.record_sets.media
                if sampling.shots and not is_planned:
                    self._cut_shots(medium, video)
                else:
                    self._cut_chunks(medium, video)

    def _cut_chunks(self, medium: FramesItem, video: "Video") -> None:
        plans = self._plans(medium, video)
        chunks_there, missing = self._split(medium, video, plans)
        for chunk in video.chunks(missing, self._job.fit_video):
            self._store(medium, chunk)
            chunks_there[chunk.index.index] = chunk.index
            # Otherwise two chunks would be in memory while the next one is decoded.
            del chunk
            if self.stop.is_set():
                return
        tried = {plan.index for plan in missing}
        if all(plan.index in chunks_there or plan.index in tried for plan in plans):
            self._end(medium, video, chunks_there)
        else:  # frames of other chunks were deleted, and are not needed again
            self._answer([medium.digest])

    def _store(self, medium: FramesItem, chunk: Chunk) -> None:
        medium.check()
        self.record_sets.publish([(medium, chunk)])

    def _end(self, medium: FramesItem, video: "Video", known: Mapping[int, ChunkIndex]) -> None:
        index = video.media_index([known[at] for at in sorted(known)])
        medium.check()
        self._finish([(medium, index)])

    def _finish(self, media: Sequence[tuple[FramesItem, MediaIndex]]) -> None:
        self.record_sets.finish(media)
        self._answer(medium.digest for medium, _ in media)

    def _plans(self, medium: FramesItem, video: "Video") -> list["ChunkPlan"]:
        if not (self._job.sampling.shots and medium.digest in self.record_sets.media):
            return video.plan(self._job.sampling)
        index = read_record(MediaIndex, self.record_sets.media.meta(medium.digest))
        return video.plan_stored(index.chunks)

    def _cut_shots(self, medium: FramesItem, video: "Video") -> None:
        """Store the chunks of a video whose shots are unknown, or known only at the beginning."""
        sets = self.record_sets
        stored = takewhile(lambda at: sets.key(medium, at) in sets.frames, count())
        done = [self._known(medium, video, at) for at in stored]
        by_index = {chunk.index: chunk for chunk in done}
        for chunk in video.shots(self._job.sampling, self._job.fit_video, after=done):
            self._set_item_count(medium, chunk.index.index + 1 - len(done))
            self._store(medium, chunk)
            by_index[chunk.index.index] = chunk.index
            del chunk
            if self.stop.is_set():
                return
        self._end(medium, video, by_index)

    def _set_item_count(self, medium: FramesItem, items: int) -> None:
        """Set the number of items of a medium, and report the new total."""
        with self._lock:
            self._items[medium.digest] = items
            self.report.total(sum(self._items.values()), self._earlier)

    def cut_images(self, group: Sequence[FramesItem]) -> None:
        """Store a group of images, in packs."""
        chunks: list[tuple[FramesItem, Chunk]] = []
        done: list[tuple[FramesItem, MediaIndex]] = []

        def store() -> None:
            self.record_sets.publish(chunks)
            self._finish(done)
            chunks.clear()
            done.clear()

        with self._claimed(group) as claimed:
            for medium in claimed:
                if self.stop.is_set():
                    break
                with self.record_sets.failing(medium) as path:
                    index, chunk = read_image(path, self._job.fit_image)
                    medium.check()
                    chunks.append((medium, chunk))
                    done.append((medium, index))
                if sum(chunk.pixels.nbytes for _, chunk in chunks) >= PACK_BYTES:
                    store()
            store()

    def _split(
        self, medium: FramesItem, video: "Video", plans: Sequence["ChunkPlan"]
    ) -> tuple[dict[int, ChunkIndex], list["ChunkPlan"]]:
        """Return stored chunks by index, recalled in `video`, and the plans of missing ones."""
        by_index: dict[int, ChunkIndex] = {}
        missing = []
        chosen = None if medium.chunk_indexes is None else frozenset(medium.chunk_indexes)
        for plan in plans:
            if self.record_sets.key(medium, plan.index) in self.record_sets.frames:
                by_index[plan.index] = self._known(medium, video, plan.index)
            elif chosen is None or plan.index in chosen:
                missing.append(plan)
        self._set_item_count(medium, len(missing))
        return by_index, missing

    def _known(self, medium: FramesItem, video: "Video", at: int) -> ChunkIndex:
        """Return a stored chunk, and recall it in `video`."""
        meta = self.record_sets.frames.meta(self.record_sets.key(medium, at))
        index = ChunkIndex.from_frames(meta)
        video.recall(index, read_record(Damage, meta["damage"]))
        return index
