"""Each stage of a run over a wave, a rung down whenever it runs out of memory, and what else its
death means; knows not what runs after what."""

from collections.abc import Callable, Collection, Container, Mapping, Sequence

from artifacts.errors import CannotFit, StageDied
from artifacts.packs import Record
from artifacts.schema import Half
from flows.job.holds import Hold
from flows.job.launch import Launcher, Running
from flows.job.prepare import Job
from flows.job.tasks import Medium, Task
from flows.pipelines import FRAMES, HALF_OF
from flows.planning.efforts import times_of
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.planning.sizes import Estimate
from flows.planning.start import plan_start
from flows.results.run_record import RunRecord
from flows.running.alone import Alone, too_large
from flows.running.batches import cut, decode_batches, encode_batches
from flows.running.calls import KEYS, Calls, HalfStage, settings_on
from flows.running.work import Work
from stages.frames.medium import CHANGED, CHANGED_HINT, CHANGED_MESSAGE
from stages.process.ending import is_crash
from stages.process.outcome import StageOutcome


class Steps:
    """The stages of one job. `tell(stage, total, done)` is called before each starts, and
    `fetch(halves)` before each that uses weights."""

    def __init__(
        self,
        job: Job,
        launcher: Launcher,
        record: RunRecord,
        ladder: Ladder,
        tell: Callable[[str, int, int], None],
        fetch: Callable[[Collection[Half]], None],
        hold: Hold,
    ) -> None:
        self._job = job
        self.launcher = launcher
        self._record = record
        self._ladder = ladder
        self.tell = tell
        self.fetch = fetch
        self._hold = hold
        self._calls = Calls(job)
        self._alone = Alone(job, ladder, self._run, tell)
        self._ahead: Running | None = None
        self._take()

    def plan(self, halves: Collection[Half], expected: Sequence[Estimate]) -> None:
        """Put what has work to do on rungs that fit. Raises CannotFit when there are none."""
        if not halves:
            return
        stages = [FRAMES.name, *(stage for stage, half in HALF_OF.items() if half in halves)]
        plan = plan_start(self._ladder, self._job, stages, expected)
        rungs = {stage: self._ladder.rung(stage) for stage in HALF_OF}
        seconds = times_of(self._job, rungs, expected).seconds
        self._record.value["plan"].update(memory=plan, seconds=seconds)
        self._take()

    def frames(self, wave: list[Medium]) -> None:
        """Cut what a wave has no frames of yet."""
        running, self._ahead = self._ahead, None
        if running is not None:
            self._finish_frames(running, wave)
        while (running := self._start_frames(wave)) and self._finish_frames(running, wave):
            pass

    def _finish_frames(self, running: Running, wave: list[Medium]) -> bool:
        """Whether it died. Then it is to be started again: with fewer files at once, or without one
        of those in hand, which is to blame, as each tells alone."""
        at_once = self._ladder.rung(FRAMES.name).batch
        try:
            self._finish(running)
            if running.outcome.items:
                self._ladder.worked(FRAMES.name)
            return False
        except (CannotFit, StageDied) as error:
            suspects = [m for m in wave if m.digest in running.outcome.in_hand]
            if isinstance(error, CannotFit) and (at_once > 1 or not suspects):
                self._ladder.down(FRAMES.name, error, largest=at_once, tokens=0)
                return True
            if not suspects or not (isinstance(error, CannotFit) or is_crash(error)):
                raise
        finally:
            self._job.ledger.refresh()
            self._leave_changed(running.outcome)
        for medium in suspects:
            self._cut_alone(medium)
        return True

    def _leave_changed(self, outcome: StageOutcome) -> None:
        """Files that are others by now are left to the next run, which sees what they are."""
        for told in outcome.failures:
            if told.kind == CHANGED:
                why = {"kind": CHANGED, "message": CHANGED_MESSAGE, "hint": CHANGED_HINT}
                self._job.ledger.unfit[told.media, -1, ""] = {"stage": FRAMES.name, **why}

    def _cut_alone(self, medium: Medium) -> None:
        """Cut one medium in a process of its own, and record it as failed if that crashes."""
        running = self._start_frames([medium])
        if running is None:
            return
        ledger = self._job.ledger
        try:
            self._finish(running)
        except CannotFit as error:  # it is tried again by the next run
            ledger.unfit[medium.digest, -1, ""] = too_large(FRAMES.name, error.message)
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

    def _start_frames(self, wave: list[Medium]) -> Running | None:
        ledger = self._job.ledger
        wanted = {m.digest: (m, ledger.frames_wanted(m)) for m in wave}
        media = [(m, chunks) for m, chunks in wanted.values() if chunks is None or chunks]
        if not media:
            return None
        self._ladder.begin(FRAMES.name)
        self.tell(FRAMES.name, len(media), 0)
        return self.launcher.start(self._calls.frames(media, self._ladder.rung(FRAMES.name)))

    def encode(self, wave: list[Medium]) -> None:
        """Make the features of a wave, and give its frames back."""
        self._through("encode", wave)
        self.give_back(wave)

    def decode(self, wave: list[Medium]) -> None:
        """Make the captions of a wave."""
        self._through("decode", wave)

    def give_back(self, media: list[Medium]) -> None:
        """Delete frames that are encoded, unless they are to be kept or another running job looks
        at them too, which would have to cut them again."""
        ledger = self._job.ledger
        if self._job.config.keep_frames or self._hold.shares(ledger.scopes.frames):
            return
        done = ledger.features.keys()
        tasks = ledger.tasks(media)
        ledger.frames.drop(t.frames for t in tasks if t.features in done or ledger.lost(t))

    def _through(self, stage: HalfStage, wave: list[Medium]) -> None:
        while work := self._work(stage, wave):
            self._ladder.begin(stage)
            self.tell(stage, work.total, work.total - work.missing)
            outcome, error = self._run(stage, work.batches, work.rung)
            if error is not None:
                self._ladder.down(
                    stage,
                    error,
                    largest=max(map(len, work.batches)),
                    tokens=work.tokens,
                    ready=bool(outcome.items or outcome.notes.get("ready")),
                )
                self._take()
                continue
            if outcome.items:
                self._ladder.worked(stage)
            self._alone.fit(stage, work.tasks, outcome.too_large)
            if not (outcome.items or outcome.too_large):
                break  # whatever it is that is missing, the stage does not make it

    def _work(self, stage: HalfStage, wave: list[Medium]) -> Work | None:
        """What of a stage is to be done next: of all that is missing what is made in one way."""
        ledger, rung, key = self._job.ledger, self._ladder.rung(stage), KEYS[stage]
        source = KEYS["frames" if stage == "encode" else "encode"]
        have: Container[str] = ledger.frames if stage == "encode" else ledger.features
        tasks = [t for t in ledger.tasks(wave) if not ledger.lost(t)]
        # Of what is captioned, features may be gone, and the frames with them.
        missing = {key(t) for t in tasks if t.caption not in ledger.captions}
        if stage == "encode":
            missing -= ledger.features.keys()
        first = next((t for t in tasks if key(t) in missing), None)
        if first is None:
            return None
        total = len({key(t) for t in tasks})
        tasks = [t for t in tasks if t.scopes == first.scopes]
        lengths = ledger.lengths(tasks) if stage == "decode" else {}
        most = self._job.config.batch_size
        whole = decode_batches(tasks, lengths, most) if lengths else encode_batches(tasks, most)
        batches = [
            # Whole, so that the bytes are those of an undisturbed run; without what an earlier
            # command finished, whose frames are gone.
            [task for task in batch if key(task) in missing or source(task) in have]
            for batch in cut(whole, rung.batch)
            if any(key(task) in missing for task in batch)
        ]
        return Work(
            rung=rung,
            tasks=tasks,
            batches=batches,
            total=total,
            missing=len(missing),
            tokens=max(lengths.values(), default=0),
        )

    def _run(
        self, stage: HalfStage, batches: list[list[Task]], rung: Rung
    ) -> tuple[StageOutcome, CannotFit | None]:
        """What one process made of these batches, and the error if it ran out of memory."""
        self.fetch([HALF_OF[stage]])
        running = self.launcher.start(self._calls.half(stage, batches, rung))
        error: CannotFit | None = None
        try:
            attention = settings_on(self._job.model, rung).attention
            self._finish(running, attention, batches[0][0].scopes.precision)
        except CannotFit as found:
            error = found
        self._job.ledger.refresh()
        return running.outcome, error

    def _finish(
        self, running: Running, attention: str = "", precision: Mapping[str, str] | None = None
    ) -> None:
        try:
            running.wait()
        except BaseException:
            running.stop()
            raise
        finally:
            precision = precision or self._job.ledger.scopes.precision
            self._record.add(running.outcome, attention=attention, precision=precision)

    def begin_frames(self, wave: list[Medium]) -> None:
        """Cut the frames of a wave while another one is encoded."""
        self._ahead = self._start_frames(wave)

    def stop_ahead(self) -> None:
        """End what was begun for the next wave."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def _take(self) -> None:
        """Make things from now on as the rungs in force say."""
        model, rung = self._job.model, self._ladder.rung
        self._job.ledger.take(**{h: settings_on(model, rung(s)).label for s, h in HALF_OF.items()})
