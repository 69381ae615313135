"""Finds the chunks of a wave whose frames are stored, and sends them to a stage while others are
still cut."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from artifacts.errors import PenstockError
from artifacts.keys import item_key
from artifacts.packs import RecordSet
from artifacts.record_union import refresh_together
from artifacts.schema import ChunkIndex, MediaIndex
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task, task_of, unique
from flows.machine.launch import StageHandle
from flows.planning.rungs import Rung
from flows.running.batches import batches_by_shape, cut
from stages.models.encoding import FEED_NOTE
from stages.models.encoding.job import EncodeItem
from stages.process.live import RequestPipe
from stages.process.stage import StageSpec

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Seconds between two looks at the store."""
LOOK_SHARE = 20
"""Looking takes at most one part in this many of a run's time."""


class ChunkFeed:
    """Finds the chunks of a wave whose frames are stored, and sends them to a stage."""

    def __init__(
        self,
        job: Job,
        stage: StageSpec,
        wave: Sequence[Medium],
        rung: Rung,
        item: Callable[[Task], EncodeItem],
    ) -> None:
        """Create the pipe. Nothing is sent yet. Raises OSError."""
        self.stage, self.rung = stage, rung
        self._ledger, self._batch_size = job.ledger, job.config.batch_size
        self.variant = job.ledger.namespaces
        """Variant in which the records are made."""
        self._cut = job.pipeline[0].writes
        self._item = item
        kinds = ("media", self._cut)
        namespace = self.variant[self._cut]
        self._media, self._frames = (
            RecordSet(job.store, kind, namespace, look=False) for kind in kinds
        )
        made = [each.writes for each in job.pipeline[1:] if each.of_media and each.writes]
        self._some_made = any(job.ledger[kind].keys() for kind in made)
        prompted = stage.writes in self.variant.prompted
        media = [m for m in wave if not (prompted and m.uses_previous_caption)]
        self._left = {(m.digest, m.prompt if prompted else ""): m for m in media}
        """Media with chunks that were not found yet."""
        self._found: dict[tuple[str, str], set[int]] = {key: set() for key in self._left}
        """Indexes of the chunks whose frames were found."""
        self._portions = 0
        path = job.out / "logs" / f"{stage.name}.feed"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a run that was killed
        self._pipe = RequestPipe(path)
        self._closed = threading.Event()
        self._flusher = threading.Thread(target=self._flush, daemon=True)
        self.process: StageHandle | None = None
        """The process that reads the pipe, once it is started."""

    @property
    def path(self) -> Path:
        """Return the pipe."""
        return self._pipe.path

    @contextlib.contextmanager
    def following(self, cutting: StageHandle) -> Iterator[None]:
        """Send chunks while the block waits for a frames stage."""
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(cutting, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def end(self) -> None:
        """Send the chunks that are left, and announce the end."""
        self._send_found()
        self._pipe.send(None)
        self._flusher.start()

    def close(self) -> None:
        """Close the pipe, after the process has ended."""
        self._closed.set()
        if self._flusher.is_alive():
            self._flusher.join()
        self._pipe.close()

    def _follow(self, cutting: StageHandle, stop: threading.Event) -> None:
        seen, pause = -1, LOOK_SECONDS
        while not stop.wait(pause):
            if self._is_awaited() and (items := cutting.outcome.items) != seen:
                seen, began = items, time.monotonic()
                self._send_found()
                pause = max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - began))
            self._pipe.write()

    def _flush(self) -> None:
        while not self._pipe.write() and not self._closed.wait(LOOK_SECONDS):
            pass

    def _is_awaited(self) -> bool:
        """Return whether the process has begun with the portion before the last."""
        begun = self.process.outcome.notes.get(FEED_NOTE, 0) if self.process else 0
        return bool(self._portions <= begun + 1)

    def _send_found(self) -> None:
        """Send one portion: the batches of all chunks that were cut since the last one."""
        try:
            tasks = self._look()
        except (PenstockError, OSError) as error:  # the stages meet the same fault, and report it
            log.info("no chunks are sent: %s", error)
            return
        batches = batches_by_shape(
            tasks, self.stage.writes, self._batch_size, any_size=self.stage.mixes_image_sizes
        )
        if batches:
            items = [
                [self._item(task) for task in batch] for batch in cut(batches, self.rung.batch)
            ]
            self._pipe.send(items)
            self._portions += 1

    def _look(self) -> list[Task]:
        """Return the chunks without a record whose frames were stored since the last call."""
        refresh_together(self._media, self._frames)
        found = [task for key in [*self._left] for task in self._look_at(key)]
        return unique(found, self.stage.writes)

    def _look_at(self, key: tuple[str, str]) -> Iterator[Task]:
        medium, known = self._left[key], self._found[key]
        index = None
        if medium.digest in self._media:
            index = MediaIndex.from_json(self._media.meta(medium.digest))
        for chunk in self._unindexed(medium, known) if index is None else index.chunks:
            if chunk.index in known:
                continue
            task = task_of(medium, index, chunk, self.variant)
            if task[self._cut] in self._frames:
                known.add(chunk.index)
                others = self._ledger.variants if self._some_made else ()
                same = (task, *(task_of(medium, index, chunk, each) for each in others))
                if not any(self._is_done(each) for each in same):
                    yield task
        if index is not None and len(known) >= len(index.chunks):
            del self._left[key]

    def _unindexed(self, medium: Medium, known: set[int]) -> Iterator[ChunkIndex]:
        """Yield the next chunks of a video that is still cut. Their keys do not depend on its
        index."""
        for at in count(len(known)) if medium.kind == "video" else ():
            key = item_key(self.variant[self._cut], medium.digest, at)
            if key not in self._frames:
                return
            yield ChunkIndex.from_frames(self._frames.meta(key))

    def _is_done(self, task: Task) -> bool:
        return self._ledger.has(task, self.stage) or self._ledger.has_failed(task)
