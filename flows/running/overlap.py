"""Encodes chunks of a wave while others are still cut, in a second process.

How it works:

1. `can_overlap` says whether a stage's records are independent of the batch they are made in. Only
   then may batches be formed from the chunks that happen to be there.
2. While the frames stage runs, a thread looks up which frames it has stored, also of a video whose
   index is not complete yet. It sends their items to the encode process through a named pipe.
3. The process is sent a further portion when it has begun with the one before the last, so that
   portions grow while it is busy. After the frames stage everything that is left is sent, and the
   end of the pipe is announced.
4. All this only saves time. What the process did not make, for whatever reason, is made afterwards
   as in a run without it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count

from artifacts.errors import CannotFit, Killed, PenstockError, StageDied
from artifacts.json_shapes import read_record
from artifacts.keys import item_key
from artifacts.packs import RecordSet, refresh_together
from artifacts.regular_files import refuse_links
from artifacts.schema import ChunkIndex, MediaIndex
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task, task_of
from flows.machine.launch import StageHandle
from flows.planning.ladder import Rung
from flows.running.batches import encode_batches_of, next_work
from flows.running.stage_calls import StageCallBuilder
from flows.running.stage_loop import Attempt, StageLoop
from stages.models.encoding import FEED_NOTE
from stages.process.job import StageSpec
from stages.process.live import RequestPipe

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Seconds between two looks at the store."""
LOOK_SHARE = 20
"""Looking takes at most one part in this many of a run's time."""
NO_MEMORY = "frames are encoded after they are cut: both stages together do not fit into memory"


def can_overlap(job: Job, stage: StageSpec, rung: Rung) -> bool:
    """Return whether a stage may encode chunks in any batches, in the order in which they are cut.
    A half whose layers are streamed is read once per block, so it needs all chunks at once."""
    if stage.reads != job.pipeline[0].writes or stage.part is None or rung.block:
        return False
    if job.model.profile.route == "joint" or job.model.fp16_check:
        return False
    return not job.model.in_batches


class Overlap:
    """Encodes chunks of one wave after the other while they are cut."""

    def __init__(self, loop: StageLoop, calls: StageCallBuilder) -> None:
        self._loop = loop
        self._job = loop.job
        self._record = loop.record
        self._ladder = loop.ladder
        self._calls = calls
        self._stage = loop.job.pipeline[1]
        self._feed: ChunkFeed | None = None

    def beside(
        self, cutting: StageHandle, wave: list[Medium]
    ) -> contextlib.AbstractContextManager[None]:
        """Encode chunks of the wave, if that is possible, while the block waits for a frames
        stage."""
        self._feed = self._feed or self._start(wave)
        return contextlib.nullcontext() if self._feed is None else self._feed.following(cutting)

    def end(self) -> None:
        """Send the process what is left: all frames of the wave are cut."""
        if self._feed is not None:
            self._feed.end()

    def stop(self) -> None:
        """Stop the process. What it has published stays."""
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.attempt.process.stop()
            self._record.add(feed.attempt.outcome, attention="", precision=feed.variant.precision)
            feed.close()

    def wait(self, wave: list[Medium]) -> None:
        """Wait until the process has ended. What it did not make is missing afterwards. Raises
        PenstockError if the same would end the stage without overlap."""
        feed, self._feed = self._feed, None
        if feed is None:
            return
        ledger = self._job.ledger
        if (work := next_work(self._job, self._stage, wave, feed.rung)) is not None:
            self._loop.on_start(self._stage.name, work.total, work.total - work.missing)
        try:
            self._loop.wait(feed.attempt)
        except (CannotFit, Killed, StageDied) as error:
            # Alone it may fit: a lower rung would change the records.
            log.info("%s: %s", self._stage.name, error)
        finally:
            feed.close()
            ledger.refresh()

    def _start(self, wave: list[Medium]) -> "ChunkFeed | None":
        job, stage, rung = self._job, self._stage, self._ladder.rung(self._stage.name)
        if not can_overlap(job, stage, rung):
            return None
        if not self._ladder.fit_together([job.pipeline[0].name, stage.name]):
            notes = self._record.value["plan"].setdefault("notes", [])
            notes += [] if NO_MEMORY in notes else [NO_MEMORY]
            return None
        try:
            return ChunkFeed(job, stage, wave, rung, self._calls, self._begin)
        except (PenstockError, OSError) as error:  # such as a file system without pipes
            log.info("%s: %s", stage.name, error)
            return None

    def _begin(self, feed: "ChunkFeed", pipe: str) -> Attempt:
        name = self._stage.name
        self._ladder.begin(name)
        self._record.begin(name)
        call = self._calls.fed_call(self._stage, feed.variant, feed.rung, pipe)
        return Attempt(
            stage=self._stage,
            rung=feed.rung,
            call=call,
            process=self._loop.launcher.start(call),
            precision=feed.variant.precision,
        )


class ChunkFeed:
    """Finds the chunks of a wave whose frames are stored, and sends them to an encode process."""

    def __init__(
        self,
        job: Job,
        stage: StageSpec,
        wave: Sequence[Medium],
        rung: Rung,
        calls: StageCallBuilder,
        begin: "Callable[[ChunkFeed, str], Attempt]",
    ) -> None:
        """Create the pipe, and start the process that reads it by `begin`. Raises OSError,
        PenstockError."""
        self.rung = rung
        self.variant = job.ledger.namespaces
        """Variant in which the records are made."""
        self._stage, self._calls, self._ledger = stage, calls, job.ledger
        self._job = job
        self._cut = job.pipeline[0].writes
        self._media, self._frames = (
            RecordSet(job.store, kind, self.variant[self._cut], look=False)
            for kind in ("media", self._cut)
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
        self._cutting: StageHandle | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        path = job.out / "logs" / f"{stage.name}.feed"
        refuse_links(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a run that was killed
        self._pipe = RequestPipe(path)
        try:
            self.attempt = begin(self, str(path))
        except BaseException:
            self._pipe.close()
            raise
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def following(self, cutting: StageHandle) -> Iterator[None]:
        """Send chunks while the block waits for a frames stage."""
        self._cutting = cutting
        try:
            yield
        finally:
            with self._lock:  # the ledger is used by one thread at a time
                self._cutting = None

    def end(self) -> None:
        """Send the chunks that are left, and announce the end."""
        with self._lock:
            self._send_found()
            self._pipe.send(None)

    def close(self) -> None:
        """Close the pipe, after the process has ended."""
        self._closed.set()
        self._thread.join()
        self._pipe.close()

    def _send(self) -> None:
        seen, pause = -1, LOOK_SECONDS
        while not self._closed.wait(pause):
            with self._lock:
                items = self._cutting.outcome.items if self._cutting else seen
                begun = self.attempt.outcome.notes.get(FEED_NOTE, 0)
                if items != seen and self._portions <= begun + 1:
                    seen, began = items, time.monotonic()
                    self._send_found()
                    pause = max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - began))
                self._pipe.write()

    def _send_found(self) -> None:
        """Send one portion: the batches of all chunks that were cut since the last one."""
        try:
            refresh_together(self._media, self._frames)
        except (PenstockError, OSError) as error:  # the stages meet the same fault, and report it
            log.info("no chunks are sent: %s", error)
        tasks = [task for key in [*self._left] for task in self._look_at(key)]
        parts = encode_batches_of(self._job, self._stage, tasks, self.rung)
        if parts:
            item = self._calls.encode_item
            self._pipe.send([[item(self._stage, task) for task in batch] for batch in parts])
            self._portions += 1

    def _look_at(self, key: tuple[str, str]) -> Iterator[Task]:
        """Yield the chunks of a medium without a record whose frames are there by now."""
        medium, known, ledger = self._left[key], self._found[key], self._ledger
        index = None
        if medium.digest in self._media:
            index = read_record(MediaIndex, self._media.meta(medium.digest))
        for chunk in self._unindexed(medium, known) if index is None else index.chunks:
            task = task_of(medium, chunk, self.variant)
            if chunk.index not in known and task[self._cut] in self._frames:
                known.add(chunk.index)
                others = ledger.variants if self._some_made else ()
                same = (task, *(task_of(medium, chunk, each) for each in others))
                if not any(ledger.has(t, self._stage) or ledger.has_failed(t) for t in same):
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
