"""Cuts the frames of one wave after the other.

How it works:

1. One process decodes the files of a wave. It stays for the next wave, whose files it is sent while
   later stages work on this one, and it is sent the end with the last wave.
2. If the process runs out of memory, it is started again with fewer files at once.
3. If it crashes, is killed twice in a row, or runs out of memory with one file at a time, each file
   that it had open is decoded alone. A file that crashes the decoder is recorded as failed; one
   that does not fit in memory, or at which the process is killed once more, is left to the next
   run.
4. Without a pipe, such as on a file system that has none, there is a process for each wave.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from artifacts.disk.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE
from artifacts.errors import CannotFit, Killed, PenstockError, StageDied
from artifacts.records.packs import Record
from flows.core.ledger.tasks import Medium
from flows.execution.overlap import Overlap
from flows.execution.run_pipe import LOOK_SECONDS, Patience, RunPipe
from flows.execution.stage_calls import StageCallBuilder
from flows.execution.stage_loop import Attempt, StageLoop, crash_suspects, too_large
from stages.frames.job import CRASHED, UNSTORED_KINDS, FramesItem
from stages.process.events import StageOutcome
from stages.process.exit_diagnosis import is_crash
from stages.process.requests import End, Make

log = logging.getLogger(__name__)

SUSPICIOUS_KILLS = 2
"""How many kills in a row, without anything made between them, may be the fault of a file."""
KILLED = {
    "kind": "killed",
    "message": "the process that decodes this file was killed each time, also with this file alone",
    "hint": "See whether the system ended it for want of memory; the same command tries it again",
}
"""Failure of a file that is left to the next run."""


@dataclass(kw_only=True, slots=True)
class _Staying:
    """A process that stays for the next wave."""

    attempt: Attempt
    pipe: RunPipe
    sent: set[str]
    """Digests of the media that it was sent, and had not answered before."""

    @property
    def open(self) -> set[str]:
        """Return the digests of the media that it has not answered."""
        return self.sent - self.attempt.outcome.answered

    def send(self, files: Sequence[FramesItem]) -> None:
        """Send media, unless they are open."""
        still_open = self.open
        if new := [file for file in files if file.digest not in still_open]:
            digests = {file.digest for file in new}
            self.sent = still_open | digests
            # A medium of an earlier wave is answered once more.
            self.attempt.outcome.answered.difference_update(digests)
            self.pipe.send(Make(batches=[new]))


class FramesRunner:
    """The frames stage of one job."""

    def __init__(self, loop: StageLoop, calls: StageCallBuilder, overlap: Overlap) -> None:
        self._loop = loop
        self._job = loop.job
        self._stage = loop.job.pipeline[0]
        self._calls = calls
        self._overlap = overlap
        self._staying: _Staying | None = None
        self._kills = 0
        """How many times in a row a process was killed before it made anything."""

    def cut(self, wave: list[Medium], *, follows: bool) -> None:
        """Cut the frames that a wave lacks. `follows`: another wave follows. Raises
        PenstockError."""
        self._loop.until_done(
            partial(self._begin, wave, follows=follows),
            wait=partial(self._wait, wave, follows=follows),
            is_done=self._loop.note_success,
            is_solved=partial(self._cut_suspects, wave),
        )

    def cut_ahead(self, wave: list[Medium]) -> None:
        """Cut the frames of the next wave while others are processed, if the process stays."""
        if self._staying is not None:
            self._staying.send(self._missing(wave))

    def stop(self) -> None:
        """Stop the process. What it has published stays."""
        if self._staying is not None:
            self._loop.stop(self._staying.attempt)
            self._let_go()

    def _begin(self, wave: list[Medium], *, follows: bool) -> Attempt | None:
        """Return the process that cuts the frames of a wave, which is started unless it stayed;
        None if there is nothing to cut."""
        staying = self._staying
        if staying is not None and staying.attempt.process.wait_for_exit(0):
            self.stop()  # what ended it while it cut ahead, such as a full disk, may be over
            staying = None
        if staying is None:
            return self._start(wave, stays=follows)
        self._job.ledger.refresh()  # some may have been cut ahead
        staying.send(self._missing(wave))
        if not follows:
            staying.pipe.send(End())
        self._loop.on_start(self._stage.name, len(staying.open), 0)
        return staying.attempt

    def _start(self, wave: list[Medium], *, stays: bool = False) -> Attempt | None:
        if not (files := self._missing(wave)):
            return None
        rung, pipe = self._loop.ladder.rung(self._stage.name), None
        if stays:
            try:
                pipe = RunPipe(self._job.out, self._stage.name)
            except OSError as error:  # such as a file system without pipes
                log.info("%s: %s", self._stage.name, error)
        recorded, plan = self._loop.writer.stage(self._stage.name), self._loop.writer.record.plan
        expected = max(0, plan.chunks - recorded.before - recorded.items)
        path = str(pipe.path) if pipe else ""
        call = partial(self._calls.frames_call, files, rung, expected, path)
        try:
            attempt = self._loop.start(self._stage, rung, call, total=len(files))
        except BaseException:
            if pipe is not None:
                pipe.close()
            raise
        if pipe is not None:
            sent = {file.digest for file in files}
            self._staying = _Staying(attempt=attempt, pipe=pipe, sent=sent)
        return attempt

    def _missing(self, wave: Sequence[Medium]) -> list[FramesItem]:
        """Return what a wave lacks. It has a medium once per prompt."""
        files: dict[str, FramesItem] = {}
        for medium in wave:
            chunks, before = self._job.ledger.frames_to_cut(medium), files.get(medium.digest)
            if before is not None and chunks is not None:
                others = before.chunk_indexes
                chunks = None if others is None else sorted({*others, *chunks})
            file = FramesItem(medium.path, medium.digest, medium.kind, chunks, medium.stamp)
            files[medium.digest] = file
        return [file for file in files.values() if file.chunk_indexes != []]

    def _wait(self, wave: list[Medium], attempt: Attempt, *, follows: bool) -> None:
        """Wait until a process has cut a wave. Raises PenstockError."""
        try:
            with self._overlap.beside(attempt.process, wave):
                if not (follows and self._has_answered(attempt)):
                    self._end(attempt)
        except BaseException:
            attempt.process.stop()
            raise
        finally:
            self._job.ledger.refresh()
            self._skip_changed(attempt.outcome)

    def _has_answered(self, attempt: Attempt) -> bool:
        """Wait until a process that stays has answered all that it was sent. Return False if it
        does not stay, or is to end."""
        patience = Patience()
        while (staying := self._staying) is not None and staying.open:
            if self._loop.has_exited(attempt, LOOK_SECONDS) or patience.ends(attempt.outcome):
                staying.pipe.send(End())
                return False
        return staying is not None

    def _end(self, attempt: Attempt) -> None:
        """Wait for the end of a process. Raises PenstockError."""
        try:
            self._loop.wait(attempt)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        staying, self._staying = self._staying, None
        if staying is not None:
            staying.pipe.close()

    def _cut_suspects(self, wave: list[Medium], attempt: Attempt, error: PenstockError) -> bool:
        """Cut each file alone that a failed process had open. Return False if it had none, or if
        it may go on with fewer files at once, or as it was."""
        if isinstance(error, Killed):
            self._kills = 0 if error.items else self._kills + 1
            if self._kills < SUSPICIOUS_KILLS:
                return False
            self._kills = 0
        suspects = crash_suspects(error, attempt.outcome, wave)
        if not suspects or (isinstance(error, CannotFit) and attempt.rung.batch > 1):
            return False
        for medium in suspects:
            self._cut_single(medium)
        return True

    def _cut_single(self, medium: Medium) -> None:
        """Cut one medium in a process of its own, and record it as failed if that process
        crashes."""
        attempt, ledger = self._start([medium]), self._job.ledger
        if attempt is None:
            return
        try:
            self._loop.wait(attempt)
        except CannotFit as error:  # the next run tries it again
            ledger.unfit[medium.digest, -1, ""] = too_large(self._stage.name, error.message)
        except Killed:
            ledger.unfit[medium.digest, -1, ""] = {"stage": self._stage.name, **KILLED}
        except StageDied as error:
            if not is_crash(error):
                raise
            ledger.records.failures.publish([Record(key=medium.digest, meta=CRASHED)])
        ledger.refresh()
        self._skip_changed(attempt.outcome)

    def _skip_changed(self, outcome: StageOutcome) -> None:
        """Leave files that changed during the run, or whose server does not respond, to the next
        run."""
        for failure in outcome.failures:
            if failure.kind in UNSTORED_KINDS:
                self._job.ledger.unfit[failure.media, -1, ""] = {
                    "stage": self._stage.name,
                    "kind": failure.kind,
                    "message": CHANGED_MESSAGE if failure.kind == CHANGED else failure.message,
                    "hint": CHANGED_HINT if failure.kind == CHANGED else failure.hint,
                }
