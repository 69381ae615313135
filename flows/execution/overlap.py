"""Encodes chunks of a wave while others are still cut, and captions them while others are encoded.

How it works:

1. `takes_any_batches` says whether a stage's records are independent of the batch they are made
   in. Only then may batches be formed from the chunks that happen to be there.
2. While the frames stage runs, a thread looks up which frames it has stored, also of a video whose
   index is not complete yet. It sends their items to the encode process through a named pipe.
3. The process is sent further chunks when it has begun with the message before the last, so that
   messages grow while it is busy. On several GPUs there is a process on each, and what was found is
   divided among those that are free. After the frames stage everything that is left is sent.
4. `shares` says whether both halves fit into the memory of the one device together. Then the run
   holds the device's lock, each process is limited to its share of the budget, and a decode process
   is fed in the same way with the chunks whose features are stored.
5. These two stay from one wave to the next, so that each half is loaded once. The next wave begins
   when the encode process has answered all that it was sent, so that the frames of the wave can be
   deleted; captions may be made later. In the last wave, both are told to end.
6. If either of them runs out of memory, no more chunks are sent and the decode process is stopped.
   No rung is stepped down: alone, the stage has the whole budget.
7. All this only saves time. What a process did not make, for whatever reason, is made afterwards
   as in a run without it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

from artifacts.disk.json_records import read_record
from artifacts.disk.locks import try_hold
from artifacts.disk.regular_files import refuse_links
from artifacts.errors import CannotFit, Killed, PenstockError, StageDied
from artifacts.records.keys import item_key
from artifacts.records.packs import RecordSet, refresh_together
from artifacts.schema import ChunkIndex, MediaIndex
from flows.core.ledger.ledger import previous_lengths
from flows.core.ledger.tasks import Medium, Task, task_of, unique
from flows.core.machine.launch import StageHandle
from flows.core.pipelines import encoder_of
from flows.core.plan.ladder import Rung
from flows.core.plan.plan import shares_device, takes_any_batches
from flows.execution.batches import StageWork, cut, encode_batches_of, next_work
from flows.execution.stage_calls import StageCallBuilder
from flows.execution.stage_loop import Attempt, StageLoop
from stages import decode
from stages.process.device import device_used_bytes, lock_of
from stages.process.events import WAITS_FOR_DEVICE, StageOutcome
from stages.process.requests import BEGUN, End, Make, RequestPipe
from stages.process.stage_process import wait_for_release
from stages.process.stage_spec import StageSpec

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Seconds between two looks at the store."""
LOOK_SHARE = 20
"""Looking takes at most one part in this many of a run's time."""
NO_DEVICE_MEMORY = (
    "captions are decoded after all chunks are encoded: both halves together do not fit into the "
    "memory of the GPU, or of the host beside the frames stage"
)
NO_MEMORY = "frames are encoded after they are cut: both stages together do not fit into memory"


class Overlap:
    """Encodes chunks of one wave after the other while they are cut, and captions them while others
    are encoded."""

    def __init__(self, loop: StageLoop, calls: StageCallBuilder) -> None:
        self._loop = loop
        self._job = loop.job
        self._record = loop.record
        self._ladder = loop.ladder
        self._calls = calls
        self._stage = encoder_of(loop.job.pipeline)
        self._encode: ChunkFeed | None = None
        self._decode: ChunkFeed | None = None
        self._lock: IO[str] | None = None
        """Lock of the device on which both processes compute."""
        self._used = 0
        """Bytes of the device that were in use before they began."""
        self._ledger_lock = threading.Lock()
        """The ledger is used by one thread at a time."""
        self._follows = False
        """Whether another wave follows that the processes may stay for."""
        self._in_full = False
        """Whether that one begins only when the captions of this one are made."""
        self._behind: list[Medium] = []
        """Media of earlier waves whose captions were left to the decode process."""

    @property
    def _stays(self) -> bool:
        """Whether both processes stay for the next wave."""
        return self._follows and None not in (self._encode, self._decode)

    def begin(self, *, follows: bool, in_full: bool) -> None:
        """Begin a wave. `follows`: another one does, which with `in_full` begins when the captions
        of this one are made."""
        self._follows = follows and not any(m.uses_previous_caption for m in self._job.media)
        self._in_full = self._follows and in_full

    @contextlib.contextmanager
    def beside(self, cutting: StageHandle, wave: list[Medium]) -> Iterator[None]:
        """Encode chunks of the wave, if that is possible, while the block waits for a frames
        stage."""
        self._take_on(wave)
        with contextlib.ExitStack() as stack:
            if self._encode is not None:
                stack.enter_context(self._encode.following(cutting))
            if self._encode is not None:
                stack.enter_context(self._captioning(self._encode.attempt.process))
            yield

    def _captioning(self, encode: StageHandle) -> contextlib.AbstractContextManager[None]:
        """Caption chunks as they are encoded, while the block waits for the encode process. Where
        few chunks are made in full, slots of the decode process would stay empty by that."""
        if self._decode is None or self._in_full:
            return contextlib.nullcontext()
        return self._decode.following(encode)

    def end(self, wave: list[Medium]) -> None:
        """Send the encode process what is left: all frames of the wave are cut."""
        if self._encode is not None:
            self._take_on(wave)
            self._send_rest()

    def stop(self) -> None:
        """Stop the processes. What they have published stays."""
        encode, self._encode = self._encode, None
        self._stop(encode)
        self._stop_decode()
        self._release()

    def wait(self, stage: StageSpec, wave: list[Medium]) -> list[Medium] | None:
        """Wait until the processes have done what they can of a stage. Return the media whose
        records may be missing then, None if a process still makes them. Raises PenstockError if
        the same would end the stage without overlap."""
        if stage is self._stage:
            self._wait_encode(wave)
            return wave
        if stage is not decode.STAGE:
            return wave
        if self._stays and not self._in_full and not self._has_exited(self._decode):
            self._behind += wave
            return None
        if self._stays and self._has_answered(self._decode, wave):
            return wave
        if self._decode is not None:
            self._end_encode(wave)
            self._end_decode(wave)
            # As a process does that is given its chunks at once.
            prompts = {task.medium.prompt: task for task in self._job.ledger.tasks(wave)}
            previous_lengths(self._job.ledger, [*prompts.values()], stage)
        behind, self._behind = self._behind, []
        return [*behind, *wave]

    def _take_on(self, wave: list[Medium]) -> None:
        """Have the processes make the records of a wave, too, or start them for it."""
        if self._encode is None:
            self._start(self._shares(wave))
        self._add(wave)

    def _add(self, wave: list[Medium]) -> None:
        for feed in (self._encode, self._decode):
            if feed is not None:
                feed.add(wave)

    def _send_rest(self) -> None:
        """Send the encode process what is left, and the end unless it stays."""
        if self._encode is not None:
            self._encode.send_rest(ends=not self._stays)

    def _wait_encode(self, wave: list[Medium]) -> None:
        is_begun = self._encode is not None or self._work(self._stage, wave) is None
        if not is_begun and (shares := self._shares(wave)):
            self._start(shares)  # all frames were cut before
            self._add(wave)
            self._send_rest()
        if self._encode is None:
            return
        process, ended = self._encode.attempt.process, False
        try:
            with self._captioning(process):
                if self._has_answered(self._encode, wave):
                    ended = True
                    return
                ended = self._end_encode(wave)
        finally:
            if not ended:
                self._stop_decode()
            if self._decode is None:
                self._release()
            elif self._encode is not None:
                self._decode.send_rest()
        if self._decode is not None and self._work(self._stage, wave):
            self._end_decode(wave)  # what is left is made with the device to itself

    def _has_answered(self, feed: "ChunkFeed | None", wave: list[Medium]) -> bool:
        """Wait until a process has answered all that it was sent of the wave. Return whether both
        stay, and nothing of the wave is left to others."""
        if feed is not None and self._stays:
            self._show(feed.stage, wave)
        while feed is not None and self._stays and not feed.is_answered:
            if self._loop.has_exited(feed.attempt, LOOK_SECONDS):
                return False
            if self._decode is not None and self._decode.closed.is_set():
                self._stop_decode()
        self._job.ledger.refresh()
        return feed is not None and self._stays and self._work(feed.stage, wave) is None

    def _has_exited(self, feed: "ChunkFeed | None") -> bool:
        return feed is None or feed.attempt.process.wait_for_exit(0)

    def _end_encode(self, wave: list[Medium]) -> bool:
        """Let the encode process end, and return whether it ended well. Raises PenstockError."""
        if self._encode is None:
            return True
        self._encode.send_rest(ends=True)
        return self._wait(self._encode, wave)

    def _end_decode(self, wave: list[Medium]) -> None:
        if self._decode is not None:
            self._decode.send_rest(ends=True)
            self._wait(self._decode, wave)

    def _wait(self, feed: "ChunkFeed", wave: list[Medium]) -> bool:
        """Wait for a process, and return whether it ended well. Raises PenstockError if the same
        would end the stage without overlap."""
        self._show(feed.stage, wave)
        while not self._loop.has_exited(feed.attempt, LOOK_SECONDS):
            if self._decode is not None and self._decode.closed.is_set():
                self._stop_decode()
                if feed.stage is not self._stage:
                    self._release()
                    self._job.ledger.refresh()
                    return False
        if feed is self._encode:
            self._encode = None
        else:
            self._decode = None
            feed.attempt.outcome.warnings += self._release()
        try:
            self._loop.wait(feed.attempt)
            return True
        except (CannotFit, Killed, StageDied) as error:
            # Alone it may fit: a lower rung would change the records.
            log.info("%s: %s", feed.stage.name, error)
            return False
        finally:
            feed.close()
            self._job.ledger.refresh()

    def _show(self, stage: StageSpec, wave: list[Medium]) -> None:
        if (work := self._work(stage, wave)) is not None:
            self._loop.on_start(stage.name, work.total, work.total - work.missing)

    def _work(self, stage: StageSpec, wave: list[Medium]) -> StageWork | None:
        return next_work(self._job, stage, wave, self._ladder.rung(stage.name))

    def _stop(self, feed: "ChunkFeed | None") -> None:
        if feed is not None:
            feed.attempt.process.stop()
            self._record.add(feed.attempt.outcome, attention="", precision=feed.variant.precision)
            feed.close()

    def _stop_decode(self) -> None:
        feed, self._decode = self._decode, None
        self._stop(feed)

    def _release(self) -> list[str]:
        """Wait until the device's memory is free, release its lock, and return warnings."""
        lock, self._lock = self._lock, None
        if lock is None:
            return []
        with lock:
            return wait_for_release(self._job.device, self._used, 0)[1]

    def _shares(self, wave: list[Medium]) -> Mapping[str, int]:
        """Return the bytes of the device for encode and for decode, and take its lock; nothing if
        they cannot run at the same time."""
        self.stop()  # of an attempt that an error ended
        job, ladder = self._job, self._ladder
        if all(medium.uses_previous_caption for medium in wave):
            return {}
        stages = [stage.name for stage in job.pipeline]
        if not shares_device(job.model, [ladder.rung(s) for s in stages], job.devices):
            return {}
        if not (shares := self._fit_together(stages)):
            self._note(NO_DEVICE_MEMORY)
            return {}
        self._used = device_used_bytes(job.device)
        try:
            path = lock_of(job.device)
            self._lock = None if path is None else try_hold(path)
        except (PenstockError, OSError):  # the stage reports the same
            return {}
        return shares if path is None or self._lock else {}

    def _fit_together(self, stages: Sequence[str]) -> Mapping[str, int]:
        """Return what each stage may take of the device beside the others on their rungs."""
        return self._loop.capacity.fit_together([self._ladder.rung(stage) for stage in stages])

    def _start(self, shares: Mapping[str, int]) -> None:
        """Start the process that encodes, and that which decodes if it has a share of the
        device."""
        job, stage = self._job, self._stage
        if not takes_any_batches(job.model, self._ladder.rung(stage.name)):
            return
        if not (shares or self._fit_together([job.pipeline[0].name, stage.name])):
            self._note(NO_MEMORY)
            return
        try:
            self._encode = self._feed(stage, shares)
            if shares:
                self._decode = self._feed(decode.STAGE, shares)
                self._decode.attempt.outcome.notes["beside"] = stage.name
        except (PenstockError, OSError) as error:  # such as a file system without pipes
            log.info("%s: %s", stage.name, error)
            if self._encode is None:
                self._release()

    def _feed(self, stage: StageSpec, shares: Mapping[str, int]) -> "ChunkFeed":
        begin = partial(self._begin, share=shares.get(stage.name, 0))
        rung = self._ladder.rung(stage.name)
        devices = self._job.devices[: self._loop.capacity.processes(rung)]
        lock = self._ledger_lock
        return ChunkFeed(stage, rung, self._calls, devices, begin, lock)

    def _begin(self, feed: "ChunkFeed", pipes: Mapping[str, Path], *, share: int) -> Attempt:
        name = feed.stage.name
        self._ladder.begin(name, self._cancel if share else None)
        self._record.begin(name)
        call = self._calls.fed_call(
            feed.stage,
            feed.variant,
            feed.rung,
            pipes,
            chunks=max(1, self._record.value["plan"].get("chunks", 1)),
            fallback_batch=self._loop.capacity.batch_without_slots(feed.rung),
            share=share,
        )
        return Attempt(
            stage=feed.stage,
            rung=feed.rung,
            call=call,
            process=self._loop.launcher.start(call),
            precision=feed.variant.precision,
        )

    def _cancel(self, error: str) -> None:
        """End the overlap: a process ran out of memory. Called on the thread of its events."""
        if (feed := self._decode) is not None:
            feed.attempt.outcome.notes["beside_ended"] = error
            feed.closed.set()

    def _note(self, text: str) -> None:
        notes = self._record.value["plan"].setdefault("notes", [])
        notes += [] if text in notes else [text]


class FeedPipe(RequestPipe):
    """The pipe to the process on one device, which is sent a message when it has begun with the one
    before the last."""

    def __init__(self, path: Path, device: str) -> None:
        """Create the pipe. Raises OSError."""
        super().__init__(path)
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
        made = [spec.writes for spec in job.pipeline[1:] if spec.of_media and spec.writes]
        self._some_made = any(job.ledger[kind].keys() for kind in made)
        self._prompted = stage.writes in self.variant.prompted
        self._left: dict[tuple[str, str], Medium] = {}
        """Media with chunks that were not found yet."""
        self._found: dict[tuple[str, str], set[int]] = {}
        """Indexes of the chunks whose inputs were found."""
        self._cutting: StageHandle | None = None
        self._sent: set[str] = set()
        self._ends = False
        """Whether the process was told to end."""
        self._lock = ledger_lock
        self.closed = threading.Event()
        """Whether no more chunks are sent."""
        folder = job.out / "logs"
        refuse_links(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._pipes: list[FeedPipe] = []
        try:
            for device in devices:
                path = folder / f"{stage.name}-{device.replace(':', '-')}.feed"
                path.unlink(missing_ok=True)  # of a run that was killed
                self._pipes.append(FeedPipe(path, device))
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
        """Send chunks of these media, too, unless that was asked for before."""
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
                for pipe in self._pipes:
                    pipe.write()

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
