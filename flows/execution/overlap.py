"""Encodes chunks of a wave while others are still cut, and captions them while others are encoded.

How it works:

1. `takes_any_batches` says whether a stage's records are independent of the batch they are made
   in. Only then may batches be formed from the chunks that happen to be there.
2. While the frames stage runs, chunks whose frames are stored are sent to an encode process
   (flows/execution/chunk_feed.py). After it everything that is left is sent.
3. `FeedStarter` says whether both halves fit into the memory of the one device together. Then the
   run holds the device's lock, each process is limited to its share of the budget, and a decode
   process is fed in the same way with the chunks whose features are stored.
4. These two stay from one wave to the next, so that each half is loaded once. The next wave begins
   when the encode process has answered all that it was sent, so that the frames of the wave can be
   deleted; captions may be made later. On a CPU, and under a limit of the store, they are made
   before that. In the last wave, both are sent the end.
5. If either of them runs out of memory, no more chunks are sent and the decode process is stopped.
   No rung is stepped down: alone, the stage has the whole budget.
6. All this only saves time. What a process did not make, for whatever reason, is made afterwards
   as in a run without it.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from artifacts.disk.locks import try_hold
from artifacts.errors import CannotFit, Killed, PenstockError, StageDied
from flows.core.ledger.tasks import Medium
from flows.core.ledger.waves import previous_lengths
from flows.core.machine.launch import StageHandle
from flows.core.pipelines import encoder_of
from flows.core.plan.plan import computes_at_once, shares_device, takes_any_batches
from flows.execution.batches import StageWork, next_work
from flows.execution.chunk_feed import ChunkFeed
from flows.execution.run_pipe import LOOK_SECONDS, Patience
from flows.execution.stage_calls import StageCallBuilder
from flows.execution.stage_loop import Attempt, StageLoop
from stages import decode
from stages.process.device import device_used_bytes, lock_of
from stages.process.stage_process import wait_for_release
from stages.process.stage_spec import StageSpec

log = logging.getLogger(__name__)

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
        self._stage = encoder_of(loop.job.pipeline)
        self._computes_at_once = computes_at_once(loop.job.device)
        self._starter = FeedStarter(loop, calls, self._cancel)
        self._encode: ChunkFeed | None = None
        self._decode: ChunkFeed | None = None
        self._follows = False
        """Whether another wave follows that the processes may stay for."""
        self._in_full = False
        """Whether the next wave begins only after the captions of this wave are stored."""
        self._behind: list[Medium] = []
        """Media of earlier waves whose captions were left to the decode process."""

    @property
    def _stays(self) -> bool:
        """Whether both processes stay for the next wave."""
        return self._follows and None not in (self._encode, self._decode)

    def begin(self, *, follows: bool, in_full: bool) -> None:
        """Begin a wave. `follows`: another wave follows. With `in_full` it begins after the
        captions of this wave are stored."""
        self._follows = follows and not any(m.uses_previous_caption for m in self._job.media)
        self._in_full = self._follows and (in_full or not self._computes_at_once)

    @contextlib.contextmanager
    def beside(self, cutting: StageHandle, wave: list[Medium]) -> Iterator[None]:
        """Encode chunks of the wave, if that is possible, while the block waits for a frames
        stage."""
        self._take_on(wave)
        with contextlib.ExitStack() as stack:
            if self._encode is not None:
                stack.enter_context(self._encode.following(cutting))
                stack.enter_context(self._captioning(self._encode.attempt.process))
            yield

    def _captioning(self, encode: StageHandle) -> contextlib.AbstractContextManager[None]:
        """Send chunks to the decode process as they are encoded, while the block waits for the
        encode process. A wave that is captioned before the next one begins is sent at once: its
        chunks fill the slots better."""
        if self._decode is None or self._in_full or not self._computes_at_once:
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
        self._starter.release()

    def wait(self, stage: StageSpec, wave: list[Medium]) -> list[Medium] | None:
        """Wait until the processes have done what they can of a stage. Return the media whose
        records may be missing then, None if a process still makes them. Raises PenstockError if
        the same would end the stage without overlap."""
        if stage is self._stage:
            self._wait_encode(wave)
            return wave
        if stage is not decode.STAGE:
            return wave
        feed = self._decode
        is_running = feed is not None and not feed.attempt.process.wait_for_exit(0)
        if self._stays and not self._in_full and is_running:
            self._behind += wave
            return None
        if self._stays and self._has_answered(self._decode, wave):
            return wave
        self._end_encode(wave)
        if self._decode is None:
            self._starter.release()
        else:
            self._end_decode(wave)
            # As a process does that is given its chunks at once.
            prompts = {task.medium.prompt: task for task in self._job.ledger.tasks(wave)}
            previous_lengths(self._job.ledger, [*prompts.values()], stage)
        behind, self._behind = self._behind, []
        return [*behind, *wave]

    def _take_on(self, wave: list[Medium]) -> None:
        """Have the processes make the records of a wave, too, or start them for it."""
        if self._encode is None:
            self._start(wave)
        self._add(wave)

    def _start(self, wave: list[Medium], *, both: bool = False) -> bool:
        """Start the processes that fit beside each other, with `both` none alone. Return whether
        there is one."""
        self.stop()  # of an attempt that an error ended
        at_all = self._computes_at_once or self._follows
        shares = self._starter.shares(wave) if at_all else {}
        if shares or not both:
            self._encode, self._decode = self._starter.start(shares)
        return self._encode is not None

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
        if not is_begun and self._start(wave, both=True):  # all frames were cut before
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
                self._starter.release()
            elif self._encode is not None:
                self._decode.send_rest()
        if self._decode is not None and self._work(self._stage, wave):
            self._end_decode(wave)  # what is left is made with the device to itself

    def _has_answered(self, feed: "ChunkFeed | None", wave: list[Medium]) -> bool:
        """Wait until a process has answered all that it was sent of the wave. Return whether both
        stay, and nothing of the wave is left to others."""
        if feed is not None and self._stays:
            self._show(feed.stage, wave)
        patience = Patience()
        while feed is not None and self._stays and not feed.is_answered:
            has_exited = self._loop.has_exited(feed.attempt, LOOK_SECONDS)
            if has_exited or patience.ends(feed.attempt.outcome):
                return False
            if self._decode is not None and self._decode.closed.is_set():
                self._stop_decode()
        self._job.ledger.refresh()
        return feed is not None and self._stays and self._work(feed.stage, wave) is None

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
                    self._starter.release()
                    self._job.ledger.refresh()
                    return False
        if feed is self._encode:
            self._encode = None
        else:
            self._decode = None
            feed.attempt.outcome.warnings += self._starter.release()
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
        return next_work(self._job, stage, wave, self._loop.ladder.rung(stage.name))

    def _stop(self, feed: "ChunkFeed | None") -> None:
        if feed is not None:
            self._loop.stop(feed.attempt)
            feed.close()

    def _stop_decode(self) -> None:
        feed, self._decode = self._decode, None
        self._stop(feed)

    def _cancel(self, error: str) -> None:
        """End the overlap: a process ran out of memory. Called on the thread of its events."""
        if (feed := self._decode) is not None:
            feed.attempt.outcome.notes["beside_ended"] = error
            feed.closed.set()


class FeedStarter:
    """Starts the processes that are sent chunks, as far as they fit into memory beside each other,
    and holds the device on which both compute."""

    def __init__(
        self, loop: StageLoop, calls: StageCallBuilder, cancel: Callable[[str], None]
    ) -> None:
        """`cancel` is called with the error if a process runs out of memory beside the other."""
        self._loop = loop
        self._job = loop.job
        self._writer = loop.writer
        self._ladder = loop.ladder
        self._calls = calls
        self._cancel = cancel
        self._stage = encoder_of(loop.job.pipeline)
        self._lock: IO[str] | None = None
        """Lock of the device."""
        self._used = 0
        """Bytes of the device that were in use before they began."""
        self._ledger_lock = threading.Lock()
        """The ledger is used by one thread at a time."""

    def shares(self, wave: list[Medium]) -> Mapping[str, int]:
        """Return the bytes of the device for encode and for decode, and take its lock; nothing if
        they cannot run at the same time."""
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

    def release(self) -> list[str]:
        """Wait until the device's memory is free, release its lock, and return warnings."""
        lock, self._lock = self._lock, None
        if lock is None:
            return []
        with lock:
            return wait_for_release(self._job.device, self._used, 0)[1]

    def start(self, shares: Mapping[str, int]) -> "tuple[ChunkFeed | None, ChunkFeed | None]":
        """Start the process that encodes, and that which decodes if it has a share of the device.
        None stands for one that is not started."""
        job, stage = self._job, self._stage
        if not takes_any_batches(job.model, self._ladder.rung(stage.name)):
            return None, None
        if not (shares or self._fit_together([job.pipeline[0].name, stage.name])):
            self._note(NO_MEMORY)
            return None, None
        encode: ChunkFeed | None = None
        try:
            encode = self._feed(stage, shares)
            if not shares:
                return encode, None
            captioning = self._feed(decode.STAGE, shares)
            captioning.attempt.outcome.notes["beside"] = stage.name
            return encode, captioning
        except (PenstockError, OSError) as error:  # such as a file system without pipes
            log.info("%s: %s", stage.name, error)
            if encode is None:
                self.release()
            return encode, None

    def _fit_together(self, stages: Sequence[str]) -> Mapping[str, int]:
        """Return what each stage may take of the device beside the others on their rungs."""
        return self._loop.capacity.fit_together([self._ladder.rung(stage) for stage in stages])

    def _feed(self, stage: StageSpec, shares: Mapping[str, int]) -> "ChunkFeed":
        begin = partial(self._begin, share=shares.get(stage.name, 0))
        rung = self._ladder.rung(stage.name)
        devices = self._job.devices[: self._loop.capacity.processes(rung)]
        lock = self._ledger_lock
        return ChunkFeed(stage, rung, self._calls, devices, begin, lock)

    def _begin(self, feed: "ChunkFeed", pipes: Mapping[str, Path], *, share: int) -> Attempt:
        name = feed.stage.name
        self._ladder.begin(name, self._cancel if share else None)
        self._writer.begin(name)
        call = self._calls.fed_call(
            feed.stage,
            feed.variant,
            feed.rung,
            pipes,
            chunks=max(1, self._writer.record.plan.chunks),
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

    def _note(self, text: str) -> None:
        notes = self._writer.record.plan.notes
        notes += [] if text in notes else [text]
