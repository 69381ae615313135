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
   or another running job holds a lease on them.
7. While later stages work on a wave, `begin_frames` decodes the next one in a second process.
8. A stage without media (texts, summaries, exports) runs in one process for all its items, with the
   same fallback loop.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from artifacts.errors import CannotFit, StageDied
from artifacts.packs import Record
from artifacts.schema import Part
from artifacts.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task
from flows.machine.launch import Launcher, StageCall, StageHandle
from flows.machine.leases import Lease
from flows.pipelines import parts_of
from flows.planning.choose import memory_json, question_of, question_of_model
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.planning.sizes import Estimate
from flows.planning.start import choose, plan_start
from flows.planning.times import times_of
from flows.results.run_record import RunRecord
from flows.running.batches import work_of
from flows.running.calls import StageCallBuilder, settings_on
from flows.running.single_item import SingleItemFallback, too_large
from stages.frames.medium import NOT_REMEMBERED
from stages.process.exit_diagnosis import is_crash
from stages.process.outcome import StageOutcome
from stages.process.stage import StageSpec


class OneShotStage:
    """Runs the stages of one job that read no media."""

    def __init__(
        self,
        job: Job,
        launcher: Launcher,
        record: RunRecord,
        ladder: Ladder,
        tell: Callable[[str, int, int], None],
        fetch: Callable[[Collection[Part]], None],
    ) -> None:
        self._job = job
        self._launcher = launcher
        self._record = record
        self._ladder = ladder
        self._tell = tell
        self._fetch = fetch

    def run(
        self,
        stage: StageSpec,
        call: Callable[[Rung], StageCall],
        *,
        total: int = 1,
        by_media: bool = True,
        meanwhile: Callable[[], object] = bool,
    ) -> StageOutcome:
        """Return the outcome of the process that did all. `call` says what it is told on a rung,
        `total` how many items it makes, `by_media` whether what it takes depends on the job's
        media; `meanwhile` is called while it works. Raises PenstockError."""
        self._plan(stage, by_media)
        self._fetch(parts_of([stage]))
        while True:
            self._record.expect(stage.name, total, 0)
            self._ladder.begin(stage.name)
            self._tell(stage.name, total, 0)
            if (outcome := self._tried(stage, call, meanwhile)) is not None:
                return outcome

    def _plan(self, stage: StageSpec, by_media: bool) -> None:
        """Start on the first rung that fits the job's media, or any. Raises CannotFit."""
        job = self._job
        if job.files and by_media:
            question = question_of(job, (stage,))
        else:
            question = question_of_model(job.model, job.config, job.device, (stage,), prompt="")
        found = choose(question, job.budget, self._ladder.rungs, self._ladder.known())
        self._ladder.start({name: choice.taken.rung for name, choice in found.items()})
        plan = self._record.value["plan"]
        earlier = (plan.get("memory") or {}).get("stages", ())
        told = memory_json(found, job.budget)
        others = [each for each in earlier if each["stage"] != stage.name]
        plan["memory"] = {**told, "stages": [*others, *told["stages"]]}

    def _tried(
        self, stage: StageSpec, call: Callable[[Rung], StageCall], meanwhile: Callable[[], object]
    ) -> StageOutcome | None:
        """Return the outcome of one process; None where it ran out of memory, and the ladder went a
        rung down."""
        rung = self._ladder.rung(stage.name)
        settings = settings_on(self._job.model, rung)
        running = self._launcher.start(call(rung))
        try:
            meanwhile()
            return running.wait()
        except CannotFit as error:
            ready = bool(running.outcome.notes.get("ready"))
            self._ladder.down(stage.name, error, largest=rung.batch, tokens=0, ready=ready)
            return None
        except BaseException:
            running.stop()
            raise
        finally:
            said = {str(stage.part): settings.label} if settings else {}
            attention = settings.attention if settings else ""
            self._record.add(running.outcome, attention=attention or "", precision=said)


class StageRunner:
    """Runs the stages of one job. `tell(stage, total, done)` is called before each start, and
    `fetch(parts)` before each stage that uses weights."""

    def __init__(
        self,
        job: Job,
        launcher: Launcher,
        record: RunRecord,
        ladder: Ladder,
        tell: Callable[[str, int, int], None],
        fetch: Callable[[Collection[Part]], None],
        lease: Lease,
    ) -> None:
        self._job = job
        self._first = job.pipeline[0]
        self.launcher = launcher
        self._record = record
        self._ladder = ladder
        self.tell = tell
        self.fetch = fetch
        self._lease = lease
        self._calls = StageCallBuilder(job)
        self._single_items = SingleItemFallback(job, ladder, self._run, tell)
        self.once = OneShotStage(job, launcher, record, ladder, tell, fetch)
        self._prefetch: StageHandle | None = None
        self._take()

    def plan(self, wanted: Sequence[StageSpec], expected: Sequence[Estimate]) -> None:
        """Put the stages that have work to do on rungs that fit. Raises CannotFit when there are
        none."""
        if not wanted:
            return
        plan = plan_start(self._ladder, self._job, (self._first, *wanted), expected)
        rungs = {stage.name: self._ladder.rung(stage.name) for stage in self._job.pipeline}
        seconds = times_of(self._job, rungs, expected).seconds
        self._record.value["plan"].update(memory=plan, seconds=seconds)
        self._take()

    def frames(self, wave: list[Medium]) -> None:
        """Cut the frames that a wave lacks."""
        running, self._prefetch = self._prefetch, None
        if running is not None:
            self._finish_frames(running, wave)
        while (running := self._start_frames(wave)) and self._finish_frames(running, wave):
            pass

    def _finish_frames(self, running: StageHandle, wave: list[Medium]) -> bool:
        """Wait for the frames stage, and return whether it died and is to be started again. It then
        runs with fewer files at once, or without one of those in hand, which is to blame, as each
        tells alone."""
        at_once = self._ladder.rung(self._first.name).batch
        try:
            self._finish(running)
            if running.outcome.items:
                self._ladder.note_success(self._first.name)
            return False
        except (CannotFit, StageDied) as error:
            suspects = [m for m in wave if m.digest in running.outcome.open_media]
            if isinstance(error, CannotFit) and (at_once > 1 or not suspects):
                self._ladder.down(self._first.name, error, largest=at_once, tokens=0)
                return True
            if not suspects or not (isinstance(error, CannotFit) or is_crash(error)):
                raise
        finally:
            self._job.ledger.refresh()
            self._leave_changed(running.outcome)
        for medium in suspects:
            self._cut_single(medium)
        return True

    def _leave_changed(self, outcome: StageOutcome) -> None:
        """Leave files that changed meanwhile, or whose server is silent, to the next run."""
        for told in outcome.failures:
            if told.kind in NOT_REMEMBERED:
                self._job.ledger.unfit[told.media, -1, ""] = {
                    "stage": self._first.name,
                    "kind": told.kind,
                    "message": CHANGED_MESSAGE if told.kind == CHANGED else told.message,
                    "hint": CHANGED_HINT if told.kind == CHANGED else told.hint,
                }

    def _cut_single(self, medium: Medium) -> None:
        """Cut one medium in a process of its own, and record it as failed if that crashes."""
        running = self._start_frames([medium])
        if running is None:
            return
        ledger = self._job.ledger
        try:
            self._finish(running)
        except CannotFit as error:  # it is tried again by the next run
            ledger.unfit[medium.digest, -1, ""] = too_large(self._first.name, error.message)
        except StageDied as error:
            if not is_crash(error):
                raise
            meta = {
                "kind": "crash",
                "message": "the library that decodes the file crashed over it, or never ended",
                "hint": "Convert it, for example to H.264 in MP4",
            }
            ledger.failures.publish([Record(key=medium.digest, meta=meta)])
        ledger.refresh()
        self._leave_changed(running.outcome)

    def _start_frames(self, wave: list[Medium]) -> StageHandle | None:
        wanted: dict[str, tuple[Medium, list[int] | None]] = {}
        for medium in wave:  # which may be there once a prompt
            chunks, before = self._job.ledger.frames_wanted(medium), wanted.get(medium.digest)
            if before is not None and chunks is not None:
                chunks = None if before[1] is None else sorted({*before[1], *chunks})
            wanted[medium.digest] = (medium, chunks)
        media = [(m, chunks) for m, chunks in wanted.values() if chunks is None or chunks]
        if not media:
            return None
        self._ladder.begin(self._first.name)
        self.tell(self._first.name, len(media), 0)
        return self.launcher.start(self._calls.frames(media, self._ladder.rung(self._first.name)))

    def through(self, stage: StageSpec, wave: list[Medium]) -> None:
        """Make the records of a stage for a wave, and give back the records that it read."""
        self._make(stage, wave)
        if stage.deletes_inputs:
            self._give_back(stage, wave)

    def give_back(self, media: list[Medium]) -> None:
        """Delete all records that the stages are through with."""
        for stage in self._job.pipeline:
            if stage.deletes_inputs:
                self._give_back(stage, media)

    def _give_back(self, stage: StageSpec, media: list[Medium]) -> None:
        """Delete the records that a stage is through with. They stay if they are to be kept, or if
        another running job, which would have to make them again, looks at them too."""
        ledger = self._job.ledger
        read, done = ledger[stage.reads], ledger[stage.writes].keys()
        through = [
            task[stage.reads]
            for task in ledger.tasks(media)
            if task[stage.reads] in read and (task[stage.writes] in done or ledger.lost(task))
        ]
        if not through or self._job.config.keep_frames:
            return
        if not self._lease.shares(ledger.namespaces[stage.reads]):
            read.drop(through)

    def _make(self, stage: StageSpec, wave: list[Medium]) -> None:
        name, most = stage.name, self._job.config.batch_size
        while work := work_of(self._job.ledger, stage, wave, self._ladder.rung(name), most):
            self._ladder.begin(name)
            self.tell(name, work.total, work.total - work.missing)
            outcome, error = self._run(stage, work.batches, work.rung)
            if error is not None:
                self._ladder.down(
                    name,
                    error,
                    largest=max(map(len, work.batches)),
                    tokens=work.tokens,
                    ready=bool(outcome.items or outcome.notes.get("ready")),
                )
                self._take()
                continue
            if outcome.items:
                self._ladder.note_success(name)
            self._single_items.fit(stage, work.tasks, outcome.too_large)
            if not (outcome.items or outcome.too_large or outcome.failures):
                break  # whatever it is that is missing, the stage does not make it

    def _run(
        self, stage: StageSpec, batches: list[list[Task]], rung: Rung
    ) -> tuple[StageOutcome, CannotFit | None]:
        """Run one process over these batches; return its outcome, and its error if memory ran
        out."""
        self.fetch(parts_of([stage]))
        instead = self._ladder.instead(rung)
        running = self.launcher.start(self._calls.records(stage, batches, rung, instead))
        settings, error = settings_on(self._job.model, rung), None
        try:
            attention = settings.attention if settings else ""
            self._finish(running, attention, batches[0][0].namespaces.precision)
        except CannotFit as caught:
            error = caught
        self._job.ledger.refresh()
        return running.outcome, error

    def _finish(
        self, running: StageHandle, attention: str = "", precision: Mapping[str, str] | None = None
    ) -> None:
        try:
            running.wait()
        except BaseException:
            running.stop()
            raise
        finally:
            precision = precision or self._job.ledger.namespaces.precision
            self._record.add(running.outcome, attention=attention, precision=precision)

    def begin_frames(self, wave: list[Medium]) -> None:
        """Begin to cut the frames of a wave while another one is worked on."""
        self._prefetch = self._start_frames(wave)

    def stop_prefetch(self) -> None:
        """End the cutting that was begun for the next wave."""
        if self._prefetch is not None:
            self._prefetch.stop()
            self._prefetch = None

    def _take(self) -> None:
        """Make records from now on in the variant of the rungs in force."""
        rungs = {s.part: self._ladder.rung(s.name) for s in self._job.pipeline if s.part}
        on = {part: settings_on(self._job.model, rung) for part, rung in rungs.items()}
        self._job.ledger.take({part: settings.label for part, settings in on.items() if settings})
