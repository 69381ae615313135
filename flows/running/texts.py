"""Gets the vectors of texts: from the store, or of a process that loads the text half alone.

The half is loaded once for a set of texts, whatever is compared with them afterwards.
"""

from collections.abc import Callable

from artifacts.keys import digest_of
from artifacts.packs import RecordSet
from artifacts.text_vectors import Groups, TextVectors, text_vectors_in
from flows.checkpoint.precision import PartSettings
from flows.job.prepare import Job
from flows.ledger.namespaces import namespace_aside
from flows.machine.launch import StageCall
from flows.planning.rungs import Rung
from flows.results.run_record import RunRecord
from flows.running.calls import Calls, settings_on
from flows.running.once import OnceStep
from stages import embed_texts


class TextsStep:
    """Makes vectors of texts for one job."""

    def __init__(self, job: Job, record: RunRecord, once: OnceStep) -> None:
        self._job = job
        self._record = record
        self._once = once
        self._calls = Calls(job)

    def make(self, groups: Groups, meanwhile: Callable[[], object] = bool) -> TextVectors:
        """Return the vectors of these groups, made if they are not in the store. `meanwhile` is
        called while a process makes them. Raises PenstockError."""
        key = digest_of([list(group) for group in groups])

        def call(rung: Rung) -> StageCall:
            settings = settings_on(self._job.model, rung)
            assert settings is not None
            namespace = namespace_aside(embed_texts.STAGE, self._job.model, settings)
            return self._calls.texts(groups, namespace, key, rung)

        while (found := self._known(groups, key)) is None:
            self._once.run(embed_texts.STAGE, call, by_media=False, meanwhile=meanwhile)
        return found

    def _known(self, groups: Groups, key: str) -> TextVectors | None:
        """Return the vectors that are in the store under this key, in the best precision."""
        for settings in self._job.model.settings["language"]:
            records = self._records(settings)
            if key in records:
                self._record.expect(embed_texts.STAGE.name, 1, 1)
                return text_vectors_in(records.read(key), groups, settings.label)
        return None

    def _records(self, settings: PartSettings) -> RecordSet:
        namespace = namespace_aside(embed_texts.STAGE, self._job.model, settings)
        return RecordSet(self._job.store, embed_texts.STAGE.writes, namespace)
