"""Runs each stage of a job over one wave, and steps a rung down whenever it runs out of memory.

How it works:

1. `frames` decodes the files of a wave in one process. If that process runs out of memory, it is
   restarted with fewer files at once.
2. If it crashes, or runs out of memory with one file at a time, each file that it had open is
   decoded alone. A file that crashes the decoder is recorded as failed; one that does not fit in
   memory is left to the next run.
3. A later stage repeats this: compute what the wave lacks, choose the batches for the rung in
   force, and start one process for them. The loop ends when nothing is missing, or when a process
   made nothing.
4. After a process that ran out of memory, the ladder moves the stage one rung down. The ledger then
   switches to the variant of the new rungs, since another precision means other cache keys.
5. Items that the process reported as too large are given to `SingleItemFallback`, which tries each
   alone on every lower rung.
6. Records that a stage has consumed, such as frames, are deleted. They stay if the user keeps them
   or another running job holds a lease on their media; the last of such jobs deletes them.
7. While later stages work on a wave, `begin_frames` decodes the next one in a second process.
   If chunks may be encoded in any batches, `Overlap` encodes those of a wave as they are cut.
8. A stage without media (texts, summaries, exports) runs in one process for all its items, with the
   same fallback loop.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from artifacts.errors import CannotFit, PenstockError, StageDied, UsageError
from artifacts.packs import Record
from artifacts.schema import Part
from artifacts.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task
from flows.machine.launch import Launcher, StageCall, StageHandle
from flows.machine.leases import Lease
from flows.pipelines import parts_of
from flows.planning.choose import memory_json, plan_request, plan_request_of_model
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.planning.sizes import Estimate
from flows.planning.start import choose, plan_start
from flows.planning.times import times_of
from flows.results.run_record import RunRecord
from flows.running.batches import next_work
from flows.running.overlap import Overlap
from flows.running.single_item import SingleItemFallback, too_large
from flows.running.stage_calls import StageCallBuilder, settings_on
from stages.ask import UNANSWERED
from stages.decode.job import DecodeJob
from stages.frames.medium import CRASHED, UNSTORED_KINDS
from stages.process.exit_diagnosis import is_crash
from stages.process.outcome import StageOutcome
from stages.process.stage import StageSpec


@dataclass(frozen=True, slots=True)
class OneShotStage:
    """Runs the stages of one job that read no media."""

    job: Job
    launcher: Launcher
    record: RunRecord
    ladder: Ladder
    on_start: Callable[[str, int, int], None]
    fetch: Callable[[Collection[Part]], None]

    def run(
        self,
        stage: StageSpec,
        call: Callable[[Rung], StageCall],
        *,
        total: int = 1,
        by_media: bool = True,
        while_running: Callable[[], object] = bool,
    ) -> StageOutcome:
        """Return the outcome of one process that does all the work. `call` builds its arguments for
        a rung, and `total` is the number of items it makes. Its memory is planned for the job's
        media if `by_media` is set. `while_running` is called while it works. Raises
        PenstockError."""
        self._plan(stage, by_media)
        self.fetch(parts_of([stage]))
        while True:
            self.record.expect(stage.name, total, 0)
            self.ladder.begin(stage.name)
            self.on_start(stage.name, total, 0)
            if (outcome := self._attempt(stage, call, while_running)) is not None:
                return outcome

    def _plan(self, stage: StageSpec, by_media: bool) -> None:
        """Select the first rung that fits. Raises CannotFit."""
        job = self.job
        if job.files and by_media:
            request = plan_request(job, (stage,))
        else:
            request = plan_request_of_model(job.model, job.config, job.device, (stage,), prompt="")
        found = choose(request, job.budget, self.ladder.rungs, self.ladder.known())
        self.ladder.start({name: choice.chosen.rung for name, choice in found.items()})
        plan = self.record.value["plan"]
        earlier = (plan.get("memory") or {}).get("stages", ())
        memory = memory_json(found, job.budget)
        others = [each for each in earlier if each["stage"] != stage.name]
        plan["memory"] = {**memory, "stages": [*others, *memory["stages"]]}

    def _attempt(
        self,
        stage: StageSpec,
        call: Callable[[Rung], StageCall],
        while_running: Callable[[], object],
    ) -> StageOutcome | None:
        """Return the outcome of one process. Return None if it ran out of memory and the ladder
        moved one rung down."""
        rung = self.ladder.rung(stage.name)
        settings = settings_on(self.job.model, rung)
        process = self.launcher.start(call(rung))
        try:
            while_running()
            return process.wait()
        except CannotFit as error:
            ready = bool(process.outcome.notes.get("ready"))
            self.ladder.step_down(stage.name, error, largest=rung.batch, tokens=0, ready=ready)
            return None
        except BaseException:
            process.stop()
            raise
        finally:
            precision = {str(stage.part): settings.label} if settings else {}
            attention = settings.attention if settings else ""
            self.record.add(process.outcome, attention=attention or "", precision=precision)


class StageRunner:
    """Runs the stages of one job. `on_start(stage, total, done)` is called before each start, and
    `fetch(parts)` before each stage that uses weights."""

    def __init__(
        self,
        job: Job,
        launcher: Launcher,
        record: RunRecord,
        ladder: Ladder,
        on_start: Callable[[str, int, int], None],
        fetch: Callable[[Collection[Part]], None],
        lease: Lease,
    ) -> None:
        self._job = job
        self._first = job.pipeline[0]
        self.launcher = launcher
        self._record = record
        self._ladder = ladder
        self.on_start = on_start
        self.fetch = fetch
        self.lease = lease
        self._calls = StageCallBuilder(job)
        self._single_items = SingleItemFallback(job, ladder, self._run, on_start)
        self.one_shot = OneShotStage(job, launcher, record, ladder, on_start, fetch)
        self._prefetch: StageHandle | None = None
        self._overlap = Overlap(job, launcher, record, ladder, self._calls, self._finish)
        self._select_variant()

    def plan(self, stages: Sequence[StageSpec], expected: Sequence[Estimate]) -> None:
        """Select a rung that fits for each stage that has work to do. Raises CannotFit when there
        is none."""
        if not stages:
            return
        plan = plan_start(self._ladder, self._job, (self._first, *stages), expected)
        self._calls.sequence_tokens = self._ladder.sequence_tokens
        rungs = {stage.name: self._ladder.rung(stage.name) for stage in self._job.pipeline}
        seconds = times_of(self._job, rungs, expected).seconds
        self._record.value["plan"].update(memory=plan, seconds=seconds)
        self._select_variant()

    def frames(self, wave: list[Medium]) -> None:
        """Cut the frames that a wave lacks."""
        process, self._prefetch = self._prefetch, None
        try:
            if process is not None:
                self._finish_frames(process, wave)
            while (process := self._start_frames(wave)) and self._finish_frames(process, wave):
                pass
            self._overlap.end()
        except BaseException:
            self._overlap.stop()
            raise

    def _finish_frames(self, process: StageHandle, wave: list[Medium]) -> bool:
        """Wait for the frames stage, and return whether it must be started again. After a failure
        it has fewer files at once, or each file that it had open was cut alone."""
        at_once = self._ladder.rung(self._first.name).batch
        try:
            with self._overlap.beside(process, wave):
                self._finish(process)
            if process.outcome.items:
                self._ladder.note_success(self._first.name)
            return False
        except (CannotFit, StageDied) as error:
            suspects = [m for m in wave if m.digest in process.outcome.open_media]
            if isinstance(error, CannotFit) and (at_once > 1 or not suspects):
                self._ladder.step_down(self._first.name, error, largest=at_once, tokens=0)
                return True
            if not suspects or not (isinstance(error, CannotFit) or is_crash(error)):
                raise
        finally:
            self._job.ledger.refresh()
            self._skip_changed(process.outcome)
        for medium in suspects:
            self._cut_single(medium)
        return True

    def _skip_changed(self, outcome: StageOutcome) -> None:
        """Leave files that changed during the run, or whose server does not respond, to the next
        run."""
        for failure in outcome.failures:
            if failure.kind in UNSTORED_KINDS:
                self._job.ledger.unfit[failure.media, -1, ""] = {
                    "stage": self._first.name,
                    "kind": failure.kind,
                    "message": CHANGED_MESSAGE if failure.kind == CHANGED else failure.message,
                    "hint": CHANGED_HINT if failure.kind == CHANGED else failure.hint,
                }

    def _cut_single(self, medium: Medium) -> None:
        """Cut one medium in a process of its own, and record it as failed if that process
        crashes."""
        process = self._start_frames([medium])
        if process is None:
            return
        ledger = self._job.ledger
        try:
            self._finish(process)
        except CannotFit as error:  # the next run tries it again
            ledger.unfit[medium.digest, -1, ""] = too_large(self._first.name, error.message)
        except StageDied as error:
            if not is_crash(error):
                raise
            ledger.failures.publish([Record(key=medium.digest, meta=CRASHED)])
        ledger.refresh()
        self._skip_changed(process.outcome)

    def _start_frames(self, wave: list[Medium]) -> StageHandle | None:
        selected: dict[str, tuple[Medium, list[int] | None]] = {}
        for medium in wave:  # a wave has a medium once per prompt
            chunks, before = self._job.ledger.frames_to_cut(medium), selected.get(medium.digest)
            if before is not None and chunks is not None:
                chunks = None if before[1] is None else sorted({*before[1], *chunks})
            selected[medium.digest] = (medium, chunks)
        media = [(m, chunks) for m, chunks in selected.values() if chunks is None or chunks]
        if not media:
            return None
        self._ladder.begin(self._first.name)
        self.on_start(self._first.name, len(media), 0)
        return self.launcher.start(
            self._calls.frames_call(media, self._ladder.rung(self._first.name))
        )

    def run_stage(self, stage: StageSpec, wave: list[Medium]) -> None:
        """Make the records of a stage for a wave, then delete the records that it consumed."""
        if stage is self._job.pipeline[1]:
            self._overlap.wait(wave, self.on_start)
        self._run_until_done(stage, wave)
        if stage.deletes_inputs:
            self._delete_consumed(stage, wave)

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
        ledger, read = self._job.ledger, self._job.ledger[stage.reads]
        read.refresh()  # other runs remove their own records from packs that hold some of this one
        consumed = [
            task
            for task in ledger.tasks(media)
            if task[stage.reads] in read and (ledger.has(task, stage) or ledger.has_failed(task))
        ]
        namespace = ledger.namespaces[stage.reads]
        needed = self.lease.needed_elsewhere(namespace, {t.medium.digest for t in consumed})
        read.remove(t[stage.reads] for t in consumed if t.medium.digest not in needed)

    def _run_until_done(self, stage: StageSpec, wave: list[Medium]) -> None:
        name = stage.name
        while work := next_work(self._job, stage, wave, self._ladder.rung(name)):
            self._ladder.begin(name)
            self.on_start(name, work.total, work.total - work.missing)
            outcome, error = self._run(stage, work.batches, work.rung, len(work.tasks))
            if error is not None:
                self._ladder.step_down(
                    name,
                    error,
                    largest=self._calls.slots(work.rung, sum(map(len, work.batches)))
                    or max(map(len, work.batches)),
                    tokens=work.tokens,
                    ready=bool(outcome.items or outcome.notes.get("ready")),
                )
                self._select_variant()
                continue
            if outcome.items:
                self._ladder.note_success(name)
            self._single_items.retry(stage, work.tasks, outcome.too_large)
            self._note_unanswered(stage, work.tasks, outcome)
            if not (outcome.items or outcome.too_large or outcome.failures):
                break  # the stage does not make what is missing

    def _note_unanswered(
        self, stage: StageSpec, tasks: Sequence[Task], outcome: StageOutcome
    ) -> None:
        """Leave items that a server did not answer to the next run."""
        failed = {each.media: each for each in outcome.failures if each.kind == UNANSWERED}
        for task in tasks if failed else ():
            if (failure := failed.get(task[stage.writes])) is not None:
                self._job.ledger.unfit[task.identity] = {"stage": stage.name, **failure.reason}

    def _run(
        self,
        stage: StageSpec,
        batches: list[list[Task]],
        rung: Rung,
        captions: int = 0,
        warning: str = "",
    ) -> tuple[StageOutcome, CannotFit | None]:
        """Run one process over these batches. Return its outcome, and its error if it ran out of
        memory. `captions` is the number of captions of the wave; `warning` is recorded."""
        self.fetch(parts_of([stage]))
        fallback_batch = self._ladder.batch_without_slots(rung)
        call = self._calls.media_call(stage, batches, rung, fallback_batch, captions)
        process = self.launcher.start(call)
        process.outcome.warnings += [warning] if warning else []
        settings, error = settings_on(self._job.model, rung), None
        try:
            attention = settings.attention if settings else ""
            self._finish(process, attention, batches[0][0].namespaces.precision)
        except CannotFit as caught:
            error = caught
        except (UsageError, StageDied) as caught:
            if not self._stop_compiling(call, caught):
                raise
            self._job.ledger.refresh()
            text = f"{stage.name}: steps are no longer compiled: {caught.message}"
            return self._run(stage, batches, rung, warning=text)
        self._job.ledger.refresh()
        self._calls.seen |= process.outcome.notes.get("served", {})
        return process.outcome, error

    def _stop_compiling(self, call: StageCall, error: PenstockError) -> bool:
        """Return whether a failed process may be repeated without compiled steps, which it compiled
        without a request. Its captions are kept. Steps of this run are then not compiled again."""
        if not (isinstance(call.job, DecodeJob) and call.job.compiled_namespace):
            return False
        if isinstance(error, StageDied) and not is_crash(error):
            return False
        self._calls.may_compile = False
        return True

    def _finish(
        self, process: StageHandle, attention: str = "", precision: Mapping[str, str] | None = None
    ) -> None:
        try:
            process.wait()
        except BaseException:
            process.stop()
            raise
        finally:
            precision = precision or self._job.ledger.namespaces.precision
            self._record.add(process.outcome, attention=attention, precision=precision)

    def begin_frames(self, wave: list[Medium]) -> None:
        """Start to cut the frames of a wave while another wave is processed."""
        self._prefetch = self._start_frames(wave)

    def stop_prefetch(self) -> None:
        """Stop cutting frames of the next wave, and encoding those of this one as they are cut."""
        self._overlap.stop()
        if self._prefetch is not None:
            self._prefetch.stop()
            self._prefetch = None

    def _select_variant(self) -> None:
        """Make the following records in the variant of the current rungs."""
        rungs = {s.part: self._ladder.rung(s.name) for s in self._job.pipeline if s.part}
        on = {part: settings_on(self._job.model, rung) for part, rung in rungs.items()}
        self._job.ledger.use_precision(
            {part: settings.label for part, settings in on.items() if settings}
        )
