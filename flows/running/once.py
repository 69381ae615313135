"""Runs a stage that is run once in a job, over no media: on the first rung that fits, and a rung
lower whenever it runs out of memory."""

from collections.abc import Callable, Collection

from artifacts.errors import CannotFit
from artifacts.schema import Part
from flows.job.prepare import Job
from flows.machine.launch import Launcher, StageCall
from flows.pipelines import parts_of
from flows.planning.choose import memory_json, question_of, question_of_model
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.planning.start import choose
from flows.results.run_record import RunRecord
from flows.running.calls import settings_on
from stages.process.outcome import StageOutcome
from stages.process.stage import Stage


class OnceStep:
    """The stages of one job that look at no media."""

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
        stage: Stage,
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

    def _plan(self, stage: Stage, by_media: bool) -> None:
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
        self, stage: Stage, call: Callable[[Rung], StageCall], meanwhile: Callable[[], object]
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
