"""Gets the vectors of texts: from the store, or of a process that loads the text half alone.

The half is loaded once for a set of texts, whatever is compared with them afterwards. A process
that runs out of memory is started again a rung lower, as any stage is.
"""

from collections.abc import Callable, Collection, Sequence

from artifacts.errors import CannotFit
from artifacts.keys import digest_of
from artifacts.packs import RecordSet
from artifacts.schema import Part
from artifacts.text_vectors import Groups, TextVectors, text_vectors_in
from flows.job.launch import Launcher
from flows.job.namespaces import namespace_aside
from flows.job.precision import PartSettings
from flows.job.prepare import Job
from flows.pipelines import parts_of
from flows.planning.choose import Question, context_of
from flows.planning.ladder import Ladder
from flows.planning.start import choose
from flows.planning.workloads import standard_workloads
from flows.results.run_record import RunRecord
from flows.running.calls import Calls, settings_on
from stages.embed_texts import STAGE


class TextsStep:
    """Makes vectors of texts for one job."""

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
        self._calls = Calls(job)

    def make(self, groups: Groups, meanwhile: Callable[[], object] = bool) -> TextVectors:
        """Return the vectors of these groups, made if they are not in the store. `meanwhile` is
        called while a process makes them. Raises PenstockError."""
        planned, key = False, digest_of([list(group) for group in groups])
        while (found := self._known(groups, key)) is None:
            if not planned:
                self._plan()
                planned = True
            self._record.expect(STAGE.name, 1, 0)
            self._fetch(parts_of([STAGE]))
            self._ladder.begin(STAGE.name)
            self._tell(STAGE.name, 1, 0)
            self._run(groups, key, meanwhile)
        return found

    def _known(self, groups: Groups, key: str) -> TextVectors | None:
        """Return the vectors that are in the store under this key, in the best precision."""
        for settings in self._settings():
            records = self._records(settings)
            if key in records:
                self._record.expect(STAGE.name, 1, 1)
                return text_vectors_in(records.read(key), groups, settings.label)
        return None

    def _plan(self) -> None:
        """Start on the first rung that fits, whatever the media. Raises CannotFit."""
        job = self._job
        question = Question(
            model=job.model,
            config=job.config,
            device=job.device,
            workloads=tuple(standard_workloads(job.model, job.sampling, "")),
            stages=(STAGE,),
            context_bytes=context_of(job.device),
        )
        found = choose(question, job.budget, self._ladder.rungs, self._ladder.known())
        self._ladder.start({stage: choice.taken.rung for stage, choice in found.items()})

    def _run(self, groups: Groups, key: str, meanwhile: Callable[[], object]) -> None:
        rung = self._ladder.rung(STAGE.name)
        settings = settings_on(self._job.model, rung)
        assert settings is not None
        namespace = namespace_aside(STAGE, self._job.model, settings)
        call = self._calls.texts(groups, namespace, key, rung)
        running = self._launcher.start(call)
        try:
            meanwhile()
            running.wait()
        except CannotFit as error:
            ready = bool(running.outcome.notes.get("ready"))
            self._ladder.down(STAGE.name, error, largest=rung.batch, tokens=0, ready=ready)
        except BaseException:
            running.stop()
            raise
        finally:
            said = {str(STAGE.part): settings.label}
            self._record.add(running.outcome, attention=settings.attention, precision=said)

    def _settings(self) -> Sequence[PartSettings]:
        return self._job.model.settings[STAGE.part] if STAGE.part else ()

    def _records(self, settings: PartSettings) -> RecordSet:
        namespace = namespace_aside(STAGE, self._job.model, settings)
        return RecordSet(self._job.store, STAGE.writes, namespace)
