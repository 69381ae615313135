"""Runs processes of a stage until its work is done, with less memory after each that ran out of it.

How it works:

1. `start` shows the stage, fetches the weights that it loads, and starts a process on a rung.
2. `wait` waits for it. However that ends, the process is not left running, and its outcome is
   recorded.
3. `until_done` repeats both as long as its caller has a process to start. After a process that ran
   out of memory, the ladder moves the stage one rung down. The ledger then switches to the variant
   of the new rungs, since another precision means other cache keys.
4. A caller may deal with an error itself, such as a crash on one file. The stage then starts again
   on the same rung.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts.errors import CannotFit, Killed, PenstockError, StageDied
from artifacts.schema import Part
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Medium, Task
from flows.core.machine.launch import Launcher, StageCall, StageHandle, wait_or_stop
from flows.core.pipelines import parts_of
from flows.core.plan.changes import advice_for
from flows.core.plan.choose import Capacity
from flows.core.plan.ladder import Ladder, Rung
from flows.execution.stage_calls import settings_on
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.stage_record import REWRITE_SECONDS
from stages.process.events import StageOutcome
from stages.process.exit_diagnosis import is_crash
from stages.process.stage_spec import StageSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One process of a stage, on one rung."""

    stage: StageSpec
    rung: Rung
    call: StageCall
    process: StageHandle
    precision: Mapping[str, str]
    """Precision of each model part that its records depend on."""
    largest: int = 0
    """Maximum number of items in one of its batches."""
    tokens: int = 0
    """Maximum number of tokens of one of its items; 0: unknown."""
    tasks: Sequence[Task] = ()
    """All tasks of the wave that its records answer, finished or not."""
    meanwhile: Callable[[], object] = lambda: None
    """Called while it runs."""

    @property
    def outcome(self) -> StageOutcome:
        return self.process.outcome

    @property
    def is_loaded(self) -> bool:
        """Return whether the process had loaded its weights, if it needs any."""
        notes, items = self.outcome.notes, self.outcome.items
        return self.stage.part is None or bool(items or notes.get("ready"))


@dataclass(frozen=True, slots=True)
class StageLoop:
    """Runs processes of the stages of one job."""

    job: Job
    launcher: Launcher
    writer: RecordWriter
    ladder: Ladder
    on_start: Callable[[str, int, int], None]
    """Called with a stage, its number of items, and how many of them exist, before each start."""
    fetch: Callable[[Collection[Part]], None]
    """Makes sure that the weights of these parts are on this machine."""
    capacity: Capacity
    """What the memory holds, once the work is planned."""
    write_live: Callable[[], None] | None = None
    """Called now and then while the last stage runs."""

    def start(
        self,
        stage: StageSpec,
        rung: Rung,
        make_call: Callable[[], StageCall],
        *,
        total: int,
        done: int = 0,
        **attempt: Any,
    ) -> Attempt:
        """Start a process of a stage with `total` items; `done` of them exist. Further arguments
        are fields of the attempt. By default its precision is that of new records, and its largest
        batch that of the rung. Raises PenstockError."""
        self.ladder.begin(stage.name)
        self.on_start(stage.name, total, done)
        self.fetch(parts_of([stage]))
        call = make_call()
        defaults = {"precision": self.job.ledger.variant.precision, "largest": rung.batch}
        return Attempt(
            stage=stage,
            rung=rung,
            call=call,
            process=self.launcher.start(call),
            **{**defaults, **attempt},
        )

    def wait(
        self, attempt: Attempt, beside: AbstractContextManager[object] | None = None
    ) -> StageOutcome:
        """Wait for a process, within the context `beside`. Raises PenstockError."""
        settings = settings_on(self.job.model, attempt.rung)
        attention = (settings.attention if settings else "") or ""

        def meanwhile() -> None:
            attempt.meanwhile()
            if self.write_live is not None and attempt.stage is self.job.pipeline[-1]:
                while not self.has_exited(attempt, REWRITE_SECONDS):
                    pass

        try:
            return wait_or_stop(attempt.process, meanwhile, beside)
        finally:
            self.writer.add(attempt.outcome, attention=attention, precision=attempt.precision)

    def stop(self, attempt: Attempt) -> None:
        """Stop a process, and record what it has made."""
        attempt.process.stop()
        self.writer.add(attempt.outcome, attention="", precision=attempt.precision)

    def has_exited(self, attempt: Attempt, seconds: float) -> bool:
        """Wait so long for the end of a process, and return whether it has ended."""
        has_ended = attempt.process.wait_for_exit(seconds)
        if not has_ended and self.write_live and attempt.stage is self.job.pipeline[-1]:
            self.write_live()
        return has_ended

    def until_done(
        self,
        start: Callable[[], Attempt | None],
        *,
        is_done: Callable[[Attempt], bool] = lambda attempt: True,
        is_solved: Callable[[Attempt, PenstockError], bool] = lambda attempt, error: False,
        wait: Callable[[Attempt], object] | None = None,
    ) -> StageOutcome | None:
        """Run one process after another, until `start` returns none or `is_done` says so after a
        success. Return the outcome of the last success, None without one.

        `is_solved` deals with an error, and returns whether the stage is to go on without stepping
        down. `wait` replaces the method of this name. Raises PenstockError.
        """
        while (attempt := start()) is not None:
            try:
                (wait or self.wait)(attempt)
            except (CannotFit, Killed, StageDied) as error:
                if is_solved(attempt, error):
                    continue
                if not isinstance(error, CannotFit):
                    raise
                self.ladder.step_down(
                    attempt.stage.name,
                    error,
                    largest=attempt.largest,
                    tokens=attempt.tokens,
                    ready=attempt.is_loaded,
                    advise=partial(advice_for, capacity=self.capacity),
                )
                self.select_variant()
            else:
                if is_done(attempt):
                    return attempt.outcome
        return None

    def note_success(self, attempt: Attempt) -> bool:
        """Store that the stage fits on its rung, if it has made something. Return True."""
        if attempt.outcome.items:
            self.ladder.note_success(attempt.stage.name)
        return True

    def select_variant(self) -> None:
        """Make the following records in the variant of the current rungs."""
        rungs = {s.part: self.ladder.rung(s.name) for s in self.job.pipeline if s.part}
        on = {part: settings_on(self.job.model, rung) for part, rung in rungs.items()}
        self.job.ledger.use_precision(
            {part: settings.label for part, settings in on.items() if settings}
        )


def crash_suspects(
    error: PenstockError, outcome: StageOutcome, media: Sequence[Medium]
) -> list[Medium]:
    """Return the media that may have crashed a process, filled its memory, or had it killed: those
    that it had open. Return none after another error."""
    if not (isinstance(error, CannotFit | Killed) or is_crash(error)):
        return []
    return [medium for medium in media if medium.digest in outcome.open_media]


def too_large(stage: str, message: str, requested_bytes: int = 0) -> dict[str, str]:
    """Return the failure record of an item that does not fit in memory."""
    more = ""
    if requested_bytes:
        more = f": {requested_bytes / (1 << 20):,.0f} MiB more were requested at once"
    return {
        "stage": stage,
        "kind": "memory",
        "message": f"the {stage} stage has too little memory for this item, even alone"
        f"{more} ({message})",
        "hint": "Raise --memory; the same command tries it again",
    }
