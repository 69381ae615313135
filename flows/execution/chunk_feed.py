"""Finds the chunks whose inputs are stored, and sends them to a process that encodes or captions
them.

How it works:

1. While the stage that makes the inputs runs, a thread looks them up in the store, also those of a
   video whose index is not complete yet. It sends their items through a named pipe
   (stages/process/requests.py).
2. The process is sent further chunks when it has begun with the message before the last, so that
   messages grow while it is busy. On several GPUs there is a process on each, and what was found is
   divided among those that are free.
3. The process answers each item. What it has not answered when it ends is made by others.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from artifacts.disk.json_records import read_record
from artifacts.errors import PenstockError
from artifacts.records.keys import item_key
from artifacts.records.packs import RecordSet, refresh_together
from artifacts.schema import ChunkIndex, MediaIndex
from flows.core.ledger.tasks import Medium, Task, task_of, unique
from flows.core.machine.launch import StageHandle
from flows.core.plan.ladder import Rung
from flows.execution.batches import cut, encode_batches_of
from flows.execution.run_pipe import LOOK_SECONDS, RunPipe
from flows.execution.stage_calls import StageCallBuilder
from flows.execution.stage_loop import Attempt
from stages.process.events import WAITS_FOR_DEVICE, StageOutcome
from stages.process.requests import BEGUN, End, Make
from stages.process.stage_spec import StageSpec

log = logging.getLogger(__name__)

LOOK_SHARE = 20
"""Looking takes at most one part in this many of a run's time."""


class FeedPipe(RunPipe):
    """The pipe to the process on one device, which is sent a message when it has begun with the one
    before the last."""

    def __init__(self, out: Path, stage: str, device: str) -> None:
        """Create the pipe. Raises OSError."""
        super().__init__(out, f"{stage}-{device.replace(':', '-')}")
        self.device = device
        self._messages = 0

    def is_free(self, outcome: StageOutcome) -> bool:
        """Return whether a message may be sent, given the outcome of the stage so far."""
        own = outcome.devices.get(self.device, outcome)
        return self.has_reader(outcome) and self._messages <= own.notes.get(BEGUN, 0) + 1

    def has_reader(self, outcome: StageOutcome) -> bool:
        """Return whether a process on the device reads the pipe: the device may have been left out,
        or another job may use it."""
        if not outcome.devices:
            return True
        own = outcome.devices.get(self.device)
        return own is not None and not own.notes.get(WAITS_FOR_DEVICE)

    def send_batches(self, batches: Sequence[list[NamedTuple]]) -> None:
        if batches:
            self._messages += 1
            self.send(Make(batches=batches, number=self._messages))


class ChunkFeed:
    """Finds the chunks of a wave whose inputs are stored, and sends them to a process that encodes
    or captions them."""

    def __init__(
        self,
        stage: StageSpec,
        rung: Rung,
        calls: StageCallBuilder,
        devices: Sequence[str],
        begin: "Callable[[ChunkFeed, Mapping[str, Path]], Attempt]",
        ledger_lock: threading.Lock,
    ) -> None:
        """Create a pipe for each of these devices, and start the processes that read them by
        `begin`. Raises OSError, PenstockError."""
        job = self._job = calls.job
        self.stage, self.rung = stage, rung
        self.variant = job.ledger.variant
        """Variant in which the records are made."""
        self._calls, self._ledger = calls, job.ledger
        self._cut = job.pipeline[0].writes
        kinds = {"media": self.variant[self._cut], **self.variant.of}
        self._reads = stage.reads[0]
        self._media, self._frames, self._inputs = (
            RecordSet(job.store, kind, kinds[kind], look=False)
            for kind in ("media", self._cut, self._reads)
        )
        writes = [spec.writes for spec in job.pipeline[1:] if spec.of_media and spec.writes]
        self._some_made = any(job.ledger[kind].keys() for kind in writes)
        self._prompted = stage.writes in self.variant.prompted
        self._left: dict[tuple[str, str], Medium] = {}
        """Media with chunks that were not found yet."""
        self._found: dict[tuple[str, str], set[int]] = {}
        """Indexes of the chunks whose inputs were found."""
        self._cutting: StageHandle | None = None
        self._sent: set[str] = set()
        self._ends = False
        """Whether the process was sent the end."""
        self._lock = ledger_lock
        self.closed = threading.Event()
        """Whether no more chunks are sent."""
        self._pipes: list[FeedPipe] = []
        try:
            for device in devices:
                self._pipes.append(FeedPipe(job.out, stage.name, device))
            self.attempt = begin(self, {pipe.device: pipe.path for pipe in self._pipes})
        except BaseException:
            for pipe in self._pipes:
                pipe.close()
            raise
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def following(self, cutting: StageHandle) -> Iterator[None]:
        """Send chunks while the block waits for the stage that makes their inputs."""
        self._cutting = cutting
        try:
            yield
        finally:
            with self._lock:
                self._cutting = None

    @property
    def is_answered(self) -> bool:
        """Return whether the process has answered all that it was sent."""
        with self._lock:
            return self._sent <= self.attempt.outcome.answered

    def add(self, media: Sequence[Medium]) -> None:
        """Send chunks of these media, too, unless they were added before."""
        with self._lock:
            for medium in media:
                if not (self._prompted and medium.uses_previous_caption):
                    key = medium.digest, medium.prompt if self._prompted else ""
                    if key not in self._found:
                        self._left[key], self._found[key] = medium, set()

    def send_rest(self, *, ends: bool = False) -> None:
        """Send the chunks that are left, and with `ends` the end."""
        with self._lock:
            if self._ends:
                return
            outcome = self.attempt.outcome
            self._send_found([pipe for pipe in self._pipes if pipe.has_reader(outcome)])
            self._ends = ends
            for pipe in self._pipes if ends else ():
                pipe.send(End())

    def close(self) -> None:
        """Close the pipes, after the process has ended."""
        self.closed.set()
        self._thread.join()
        for pipe in self._pipes:
            pipe.close()

    def _send(self) -> None:
        seen, pause = -1, LOOK_SECONDS
        while not self.closed.wait(pause):
            with self._lock:
                items = self._cutting.outcome.items if self._cutting else seen
                outcome = self.attempt.outcome
                free = [pipe for pipe in self._pipes if pipe.is_free(outcome)]
                if items != seen and free:
                    seen, began = items, time.monotonic()
                    self._send_found(free)
                    pause = max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - began))

    def _send_found(self, pipes: "Sequence[FeedPipe]") -> None:
        """Send a message to each of these pipes: together the batches of all chunks that were made
        since the last time."""
        try:
            refresh_together(self._media, self._frames, self._inputs)
        except (PenstockError, OSError) as error:  # the stages meet the same fault, and report it
            log.info("no chunks are sent: %s", error)
        tasks = [task for key in [*self._left] for task in self._look_at(key)]
        if parts := [*self._parts([t for t in tasks if t[self.stage.writes] not in self._sent])]:
            self._sent |= {task[self.stage.writes] for task in tasks}
            for at, pipe in enumerate(pipes):
                pipe.send_batches(parts[at :: len(pipes)])

    def _parts(self, tasks: list[Task]) -> Iterator[list[NamedTuple]]:
        stage, calls, size = self.stage, self._calls, self._job.config.batch_size
        if stage.prompted:
            other = self._ledger.variants.other_engine(self.variant)
            for batch in cut([unique(tasks, stage.writes)], min(size, self.rung.batch)):
                yield [calls.decode_item(stage, task, other) for task in batch]
            return
        for batch in encode_batches_of(self._job, stage, tasks, self.rung):
            yield [calls.encode_item(stage, task) for task in batch]

    def _look_at(self, key: tuple[str, str]) -> Iterator[Task]:
        """Yield the chunks of a medium without a record whose inputs are there by now."""
        medium, known, ledger = self._left[key], self._found[key], self._ledger
        index = None
        if medium.digest in self._media:
            index = read_record(MediaIndex, self._media.meta(medium.digest))
        for chunk in self._unindexed(medium, known) if index is None else index.chunks:
            if chunk.index in known:
                continue
            task = task_of(medium, chunk, self.variant)
            if task[self._reads] in self._inputs:
                known.add(chunk.index)
                others = ledger.variants if self._some_made else ()
                same = (task, *(task_of(medium, chunk, variant) for variant in others))
                if not any(ledger.has(t, self.stage) or ledger.has_failed(t) for t in same):
                    yield task
        if index is not None and len(known) >= len(index.chunks):
            del self._left[key]

    def _unindexed(self, medium: Medium, known: set[int]) -> Iterator[ChunkIndex]:
        """Yield the chunks of a video that is still cut, from the first that was not found. Their
        keys do not depend on its index."""
        first = next(at for at in count() if at not in known)
        for at in count(first) if medium.kind == "video" else ():
            key = item_key(self.variant[self._cut], medium.digest, at)
            if key not in self._frames:
                return
            yield ChunkIndex.from_frames(self._frames.meta(key))
