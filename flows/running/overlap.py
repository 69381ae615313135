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

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from artifacts.errors import CannotFit, Killed, PenstockError, StageDied
from flows.job.prepare import Job
from flows.ledger.tasks import Medium
from flows.machine.launch import Launcher, StageHandle
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.results.run_record import RunRecord
from flows.running.batches import next_work
from flows.running.chunk_feed import ChunkFeed
from flows.running.stage_calls import StageCallBuilder, settings_on
from stages.process.stage import StageSpec

log = logging.getLogger(__name__)

TOO_LITTLE_MEMORY = (
    "frames are encoded after they are cut: both stages together do not fit into memory"
)


def can_overlap(job: Job, stage: StageSpec, rung: Rung) -> bool:
    """Return whether a stage may encode chunks in any batches, in the order in which they are cut.
    A half whose layers are streamed is read once per block, so it needs all chunks at once."""
    if stage.reads != job.pipeline[0].writes or stage.part is None or rung.block:
        return False
    if job.model.profile.route == "joint" or job.model.trial:
        return False
    return rung.batch == 1


class Overlap:
    """The process that encodes chunks of one wave after the other while they are cut."""

    def __init__(
        self,
        job: Job,
        launcher: Launcher,
        record: RunRecord,
        ladder: Ladder,
        calls: StageCallBuilder,
        finish: Callable[[StageHandle, str, Mapping[str, str]], None],
    ) -> None:
        """`finish` waits for a process and records its outcome. Its arguments are the process, its
        attention and the precision of its parts."""
        self._job = job
        self._launcher = launcher
        self._record = record
        self._ladder = ladder
        self._calls = calls
        self._finish = finish
        self._stage = job.pipeline[1]
        self._feed: ChunkFeed | None = None

    def beside(self, cutting: StageHandle, wave: list[Medium]) -> AbstractContextManager[object]:
        """Encode chunks of the wave, if that is possible, while the block waits for a frames stage.
        Raises PenstockError."""
        if self._feed is None:
            self._feed = self._start(wave)
        return nullcontext() if self._feed is None else self._feed.following(cutting)

    def end(self) -> None:
        """Send the process what is left: all frames of the wave are cut."""
        if self._feed is not None:
            self._feed.end()

    def stop(self) -> None:
        """Stop the process. What it has published stays."""
        feed, self._feed = self._feed, None
        if feed is not None and feed.process is not None:
            feed.process.stop()
            self._record.add(feed.process.outcome, attention="", precision=feed.variant.precision)
            feed.close()

    def wait(self, wave: list[Medium], on_start: Callable[[str, int, int], None]) -> None:
        """Wait until the process has ended. What it did not make is missing afterwards. Raises
        PenstockError if the same would end the stage without overlap."""
        feed, self._feed = self._feed, None
        if feed is None or feed.process is None:
            return
        name, ledger, rung = self._stage.name, self._job.ledger, feed.rung
        work = next_work(ledger, self._stage, wave, rung, self._job.config.batch_size)
        if work is not None:
            on_start(name, work.total, work.total - work.missing)
        settings = settings_on(self._job.model, rung)
        attention = (settings.attention if settings else "") or ""
        try:
            self._finish(feed.process, attention, feed.variant.precision)
        except (CannotFit, Killed, StageDied) as error:
            # Alone it may fit: a lower rung would change the records.
            log.info("%s: %s", name, error)
        finally:
            feed.close()
            ledger.refresh()

    def _start(self, wave: list[Medium]) -> ChunkFeed | None:
        job, stage, rung = self._job, self._stage, self._ladder.rung(self._stage.name)
        if not can_overlap(job, stage, rung):
            return None
        if not self._ladder.fit_together([job.pipeline[0].name, stage.name]):
            notes = self._record.value["plan"].setdefault("notes", [])
            notes += [] if TOO_LITTLE_MEMORY in notes else [TOO_LITTLE_MEMORY]
            return None
        try:
            feed = ChunkFeed(job, stage, wave, rung, partial(self._calls.encode_item, stage))
        except OSError:  # a file system without pipes
            return None
        self._ladder.begin(stage.name)
        self._record.begin(stage.name)
        call = self._calls.fed_call(stage, feed.variant, rung, str(feed.path))
        try:
            feed.process = self._launcher.start(call)
        except PenstockError as error:
            log.info("%s: %s", stage.name, error)
            feed.close()
            return None
        return feed
