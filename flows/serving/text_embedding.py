"""Gets the vectors of texts: from memory, from the store, or from the text half. Runs no model."""

from collections.abc import Sequence

from artifacts.keys import digest_of
from artifacts.packs import Record
from artifacts.text_vectors import TextVectors, text_vectors_in
from flows.job.prepare import Job
from flows.ledger.namespaces import one_shot_namespace
from flows.serving.half_worker import HalfWorker
from flows.serving.record_cache import RecordCacheFlusher
from flows.serving.refusals import bad_request
from flows.serving.single_flight import SingleFlight
from stages.embed_texts import STAGE
from stages.embed_texts.job import TextsItem

MAX_TEXTS = 1000
"""Largest number of texts of one request."""
MAX_LETTERS = 2000
"""Largest number of characters of one text. No dual encoder reads as many."""


class TextEmbedder:
    """The text half of one job."""

    def __init__(self, job: Job, half: HalfWorker, keeper: RecordCacheFlusher) -> None:
        settings = job.model.best("language")
        self._half = half
        self._precision = settings.label
        self._kept = keeper.of(
            job.store, STAGE.writes, one_shot_namespace(STAGE, job.model, settings)
        )
        self._shared: SingleFlight[Record] = SingleFlight()

    async def vectors(self, groups: Sequence[Sequence[str]]) -> TextVectors:
        """Return the vectors of these groups of texts. Raises HttpRefusal."""
        lists = [list(group) for group in groups]
        texts = [text for group in lists for text in group]
        if len(texts) > MAX_TEXTS or max(map(len, texts), default=0) > MAX_LETTERS:
            raise bad_request(
                f"a request has at most {MAX_TEXTS:,} texts of {MAX_LETTERS:,} characters",
                "Ask for fewer, or start the server with --labels",
            )
        key = digest_of(lists)
        record = await self._kept.read(key) if key in self._kept else None
        if record is None:
            record = await self._shared.once(key, lambda: self._make(key, lists))
            self._kept.keep([record])
        return text_vectors_in(record, lists, self._precision)

    async def _make(self, key: str, groups: list[list[str]]) -> Record:
        record: Record = await self._half.submit(key, TextsItem(key, groups), len(groups))
        return record
