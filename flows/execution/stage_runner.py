"""Runs each stage of a job over one wave, and steps a rung down whenever it runs out of memory.

How it works:

1. `FramesRunner` decodes the files of a wave, and those of the next one while later stages work. If
   chunks may be encoded in any batches, `Overlap` encodes those of a wave as they are cut.
2. A later stage repeats this: compute what the wave lacks, choose the batches for the rung in
   force, and start one process for them. The loop ends when nothing is missing, or when a process
   made nothing. `StageLoop` steps down in between.
3. Items that did not fit in a batch, which the process reported as too large, are tried alone, on
   every lower rung, before they fail.
4. Records that a stage has consumed, such as frames, are deleted. They stay if the user keeps them
   or another running job holds a lease on their media; the last of such jobs deletes them.
5. A stage without media (texts, summaries, exports) runs in one process for all its items, in the
   same loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from artifacts.errors import CannotFit, Killed, PenstockError, StageDied
from artifacts.records.packs import Record
from flows.core.ledger.tasks import Medium, Task, unique
from flows.core.machine.launch import StageCall
from flows.core.machine.leases import Lease
from flows.core.pipelines import parts_of
from flows.core.plan.changes import advice_for
from flows.core.plan.choose import memory_plan, plan_request, plan_request_of_model
from flows.core.plan.ladder import Rung
from flows.core.plan.plan import choose, plan_start
from flows.core.plan.sizes import Estimate
from flows.core.plan.times import times_of
from flows.execution.batches import StageWork, next_work
from flows.execution.frames_runner import FramesRunner
from flows.execution.overlap import Overlap
from flows.execution.stage_calls import StageCallBuilder, settings_on
from flows.execution.stage_loop import Attempt, StageLoop, crash_suspects, too_large
from flows.outputs.write import media_paths_of
from stages.ask import UNANSWERED
from stages.frames.job import CRASHED, UNSTORED_KINDS
from stages.process.events import StageOutcome, TooLarge
from stages.process.exit_diagnosis import is_crash
from stages.process.stage_spec import StageSpec


class StageRunner:
    """Runs the stages of one job."""

    def __init__(self, loop: StageLoop, lease: Lease) -> None:
        self.lease = lease
        self._job = loop.job
        self._first = loop.job.pipeline[0]
        self._writer = loop.writer
        self._ladder = loop.ladder
        self._calls = StageCallBuilder(loop.job)
        self._take(loop)
        loop.select_variant()

    def _take(self, loop: StageLoop) -> None:
        """Run all further processes by this loop."""
        self.loop = loop
        self._overlap = Overlap(loop, self._calls)
        self._frames = FramesRunner(loop, self._calls, self._overlap)

    def plan(
        self,
        stages: Sequence[StageSpec],
        expected: Sequence[Estimate],
        announce: Callable[[str], object],
    ) -> None:
        """Select a rung that fits for each stage that has work to do. `announce` is called with a
        note for the user. Raises CannotFit when there is none."""
        planned = (self._first, *stages)
        plan, capacity = plan_start(self._ladder, self._job, planned, expected, announce)
        self._take(replace(self.loop, capacity=capacity))
        self._calls.sequence_tokens = capacity.sequence_tokens
        rungs = {stage.name: self._ladder.rung(stage.name) for stage in self._job.pipeline}
        seconds, _ = times_of(self._job, expected, lambda stage: capacity.processes(rungs[stage]))
        recorded = self._writer.record.plan
        recorded.memory, recorded.seconds = plan, seconds or {}
        self.loop.select_variant()

    def run_once(
        self,
        stage: StageSpec,
        call: Callable[[Rung], StageCall],
        *,
        total: int = 1,
        done: Callable[[], int] = lambda: 0,
        by_media: bool = True,
        while_running: Callable[[], object] = lambda: None,
    ) -> StageOutcome:
        """Run a stage that reads no media in one process, and return its outcome. `call` builds its
        arguments for a rung, `total` is the number of items it makes, and `done` returns how many
        of them exist. Its memory is planned for the job's media if `by_media` is set.
        `while_running` is called while it works. Raises PenstockError."""
        loop = self.loop
        self._plan_once(stage, by_media)
        loop.fetch(parts_of([stage]))

        def start() -> Attempt:
            existing = min(done(), total)
            loop.writer.expect(stage.name, total, existing)
            rung = loop.ladder.rung(stage.name)
            settings = settings_on(loop.job.model, rung)
            return loop.start(
                stage,
                rung,
                partial(call, rung),
                total=total,
                done=existing,
                precision={str(stage.part): settings.label} if settings else {},
                meanwhile=while_running,
            )

        outcome = loop.until_done(start)
        assert outcome is not None
        return outcome

    def _plan_once(self, stage: StageSpec, by_media: bool) -> None:
        """Select the first rung that fits. Raises CannotFit."""
        job, ladder = self._job, self._ladder
        if job.files and by_media:
            request = plan_request(job, (stage,))
        else:
            request = plan_request_of_model(job.model, job.config, job.device, (stage,), prompt="")
        plans = choose(request, job.budget, ladder.rungs, ladder.known())
        ladder.start({name: choice.chosen.rung for name, choice in plans.items()})
        plan, memory = self._writer.record.plan, memory_plan(plans, job.budget)
        others = [planned for planned in plan.memory.stages if planned.stage != stage.name]
        plan.memory = replace(memory, stages=[*others, *memory.stages])

    def frames(self, wave: list[Medium], *, follows: bool = False, in_full: bool = False) -> None:
        """Cut the frames that a wave lacks. `follows` and `in_full`: as in `Overlap.begin`. Raises
        PenstockError."""
        self._overlap.begin(follows=follows, in_full=in_full)
        try:
            self._frames.cut(wave, follows=follows)
            self._overlap.end(wave)
        except BaseException:
            self._overlap.stop()
            raise

    def frames_ahead(self, wave: list[Medium]) -> None:
        """Begin to cut the frames of the next wave."""
        self._frames.cut_ahead(wave)

    def stop(self) -> None:
        """Stop the processes that stay from wave to wave."""
        self._overlap.stop()
        self._frames.stop()

    def run_stage(self, stage: StageSpec, wave: list[Medium]) -> None:
        """Make the records of a stage for a wave, then delete the records that it consumed. A
        process that stays for the next wave may make some later."""
        if (media := self._overlap.wait(stage, wave)) is None:
            return
        self._run_until_done(stage, media)
        if stage.deletes_inputs:
            self._delete_consumed(stage, media)

    def delete_consumed(self, media: list[Medium]) -> None:
        """Delete all records that the stages no longer need."""
        for stage in self._job.pipeline:
            if stage.deletes_inputs:
                self._delete_consumed(stage, media)

    def end_lease(self) -> None:
        """End the lease, and delete what runs that share media each left to the other."""
        self.lease.end()
        self.delete_consumed(self._job.media)

    def _delete_consumed(self, stage: StageSpec, media: list[Medium]) -> None:
        """Delete the records that a stage no longer needs. They stay if the user keeps them, or if
        another running job needs them too."""
        if self._job.config.keep_frames:
            return
        (kind,) = stage.reads
        ledger, read = self._job.ledger, self._job.ledger[kind]
        read.refresh()  # other runs remove their own records from packs that hold some of this one
        consumed = [
            task
            for task in ledger.tasks(media)
            if kind in task.keys
            and task[kind] in read
            and (ledger.has(task, stage) or ledger.has_failed(task))
        ]
        namespace = ledger.variant[kind]
        needed = self.lease.needed_elsewhere(namespace, {t.medium.digest for t in consumed})
        read.remove(t[kind] for t in consumed if t.medium.digest not in needed)

    def _run_until_done(self, stage: StageSpec, wave: list[Medium]) -> None:
        def start() -> Attempt | None:
            work = next_work(self._job, stage, wave, self._ladder.rung(stage.name))
            return None if work is None else self._start(stage, work)

        def is_solved(attempt: Attempt, error: PenstockError) -> bool:
            if isinstance(error, CannotFit):
                self._look_again(attempt.outcome)
            return not stage.part and self._read_suspects(stage, wave, attempt, error)

        self.loop.until_done(start, is_done=self._is_done, is_solved=is_solved)

    def _read_suspects(
        self, stage: StageSpec, wave: list[Medium], attempt: Attempt, error: PenstockError
    ) -> bool:
        """Read each file alone that a crashed process had open. A file that crashes it again has
        no captions. Return False if there was none."""
        suspects = crash_suspects(error, attempt.outcome, wave)
        if not suspects or isinstance(error, CannotFit | Killed):
            return False
        self._look_again(attempt.outcome)
        ledger, kind = self._job.ledger, stage.writes
        for medium in suspects:
            tasks = [task for task in ledger.tasks([medium]) if not ledger.has(task, stage)]
            try:
                if tasks:
                    self._run_alone(stage, tasks, attempt.rung)
            except StageDied as again:
                if not is_crash(again):
                    raise
                failed = [Record(key=task[kind], meta=CRASHED) for task in tasks]
                ledger.records.refused[stage.name].publish(failed)
                ledger.refresh()
        return True

    def _is_done(self, attempt: Attempt) -> bool:
        """Try each item alone that was too large. Return whether the stage does not make what is
        still missing."""
        outcome, stage = attempt.outcome, attempt.stage
        self._look_again(outcome)
        self.loop.note_success(attempt)
        self._retry_alone(stage, attempt.tasks, outcome.too_large)
        self._note_unanswered(stage, attempt.tasks, outcome)
        return not (outcome.items or outcome.too_large or outcome.failures)

    def _look_again(self, outcome: StageOutcome) -> None:
        """Look up what a process has stored, and keep what its servers have stated."""
        self._job.ledger.refresh()
        self._calls.seen |= outcome.notes.get("served", {})

    def _note_unanswered(
        self, stage: StageSpec, tasks: Sequence[Task], outcome: StageOutcome
    ) -> None:
        """Leave items that a server did not answer, and sound of files that changed or cannot be
        reached, to the next run."""
        kinds = {UNANSWERED, *UNSTORED_KINDS}
        failed = {failure.media: failure for failure in outcome.failures if failure.kind in kinds}
        for task in tasks if failed else ():
            if (failure := failed.get(task[stage.writes])) is not None:
                self._job.ledger.unfit[task.identity] = {"stage": stage.name, **failure.reason}

    def _start(self, stage: StageSpec, work: StageWork) -> Attempt:
        rung, batches, capacity = work.rung, work.batches, self.loop.capacity
        fallback_batch, items = capacity.batch_without_slots(rung), sum(map(len, batches))
        return self.loop.start(
            stage,
            rung,
            lambda: self._calls.media_call(
                stage, batches, rung, fallback_batch, capacity.processes(rung)
            ),
            total=work.total,
            done=work.total - work.missing,
            precision=batches[0][0].variant.precision,
            largest=self._calls.slots(rung, items) or max(map(len, batches)),
            tokens=work.tokens,
            tasks=work.tasks,
        )

    def _run_alone(self, stage: StageSpec, tasks: Sequence[Task], rung: Rung) -> bool:
        """Run one process over these tasks, each in a batch of its own. Return whether it fitted
        in memory."""
        batches = [[task] for task in tasks]
        work = StageWork(rung=rung, tasks=[], batches=batches, total=len(tasks), missing=len(tasks))
        attempt, fits = self._start(stage, work), True
        try:
            self.loop.wait(attempt)
        except CannotFit:
            fits = False
        self._look_again(attempt.outcome)
        return fits

    def _retry_alone(
        self, stage: StageSpec, tasks: Sequence[Task], events: Sequence[TooLarge]
    ) -> None:
        """Run each item that was reported as too large in its own process, on lower and lower
        rungs. Raises CannotFit if the stage never made any record."""
        events_by_identity = self._events_by_identity(stage, tasks, events)
        remaining = [task for task in tasks if task.identity in events_by_identity]
        for rung in self._ladder.single_item_rungs(stage.name) if remaining else []:
            error = events_by_identity[remaining[0].identity].error
            self._ladder.log_single_items(rung, [self._name(task) for task in remaining], error)
            self._run_each(stage, rung, remaining)
            remaining = [task for task in remaining if not self._is_made(stage, task)]
            if not remaining:
                break
        self._job.ledger.clear_tasks()
        of_job = self._job.ledger.tasks(self._job.media) if remaining else []
        if remaining and not any(self._is_made(stage, task) for task in of_job):
            error = events_by_identity[remaining[0].identity].error
            advice = advice_for(stage.name, self.loop.capacity)
            raise self._ladder.nothing_fits(stage.name, CannotFit(error), advice)
        for task in remaining:
            event = events_by_identity[task.identity]
            self._job.ledger.unfit[task.identity] = too_large(
                stage.name, event.error, event.wanted_bytes
            )

    def _events_by_identity(
        self, stage: StageSpec, tasks: Sequence[Task], events: Sequence[TooLarge]
    ) -> dict[tuple[str, int, str], TooLarge]:
        """Return the event of each task. An event may name the task's key in any equivalent
        variant."""
        by_key, ledger = {event.key: event for event in events}, self._job.ledger
        by_identity = {}
        for task in tasks if by_key else ():
            keys = [same[stage.writes] for same in ledger.equivalent_tasks(task)]
            reported = [by_key[key] for key in keys if key in by_key]
            if reported:
                by_identity[task.identity] = reported[0]
        return by_identity

    def _run_each(self, stage: StageSpec, rung: Rung, tasks: Sequence[Task]) -> None:
        """Run all tasks in one process. If it runs out of memory, run each task in its own."""
        one_each = unique([self._on_rung(stage, rung, task) for task in tasks], stage.writes)
        if not self._run_alone(stage, one_each, rung) and len(one_each) > 1:
            for task in one_each:
                self._run_alone(stage, [task], rung)

    def _on_rung(self, stage: StageSpec, rung: Rung, task: Task) -> Task:
        """Return the task with the cache keys that it has on a rung."""
        ledger, settings = self._job.ledger, settings_on(self._job.model, rung)
        if stage.part is None or settings is None:
            return task
        precision = {**task.variant.precision, stage.part: settings.label}
        return task.in_variant(ledger.variants.of_precision(precision))

    def _is_made(self, stage: StageSpec, task: Task) -> bool:
        ledger = self._job.ledger
        tasks = (task.in_variant(variant) for variant in ledger.variants)
        return any(task[stage.writes] in ledger[stage.writes] for task in tasks)

    def _name(self, task: Task) -> str:
        name = media_paths_of(self._job)[task.medium.digest]
        return f"{name} at {task.chunk.start:.1f} s" if task.chunk.start else name
