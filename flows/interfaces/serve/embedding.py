"""Gets the vectors of uploaded media and of texts, and the labels of images and frames.

The vectors of a medium come from decoders and a vision half, or from the store. Requests for the
same content share the work. If one client disconnects, the others still get the result. If all
disconnect, work that has not begun is dropped.

The vectors of a text come from memory, from the store, or from the text half. Labels are computed
from vectors. The module returns vectors and warnings as parts of HTTP responses. It runs no model
itself.
"""

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.records.packs import Record
from artifacts.records.vectors import Vectors, vectors_in
from artifacts.schema import MediaIndex, values_of
from artifacts.texts.labels import Labelled, TextVectors, spans_of, text_vectors_in
from flows.commands.label.label_set import LabelSet, labels_named
from flows.commands.label.rows import LabelContext, label_rules, label_vectors
from flows.core.job.prepare import Job
from flows.core.ledger.namespaces import one_shot_namespace
from flows.core.ledger.tasks import Medium, Task
from flows.core.media.media_file import MediaFile
from flows.execution.stage_calls import StageCallBuilder
from flows.interfaces.serve.decoders import FrameSource
from flows.interfaces.serve.half_worker import HalfWorker
from flows.interfaces.serve.metrics import Metrics
from flows.interfaces.serve.record_cache import RecordCacheFlusher
from flows.interfaces.serve.refusals import HttpRefusal, bad_request, refusal_of, shown_name
from flows.interfaces.serve.uploads import SingleFlight, Upload
from flows.outputs.vectors import shown_boxes
from stages.embed_texts import STAGE, TextsItem


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedMedium:
    """The vectors of one medium."""

    index: MediaIndex
    tasks: Sequence[Task]
    vectors: Sequence[Vectors]
    """One array per chunk."""
    cached: bool
    """Whether they were read from the store."""


class MediumEmbedder:
    """The decoders and the vision half of one job."""

    def __init__(
        self,
        job: Job,
        half: HalfWorker,
        frames: FrameSource,
        keeper: RecordCacheFlusher,
        metrics: Metrics,
    ) -> None:
        self._stage = job.pipeline[-1]
        self._half = half
        self._frames = frames
        self._metrics = metrics
        self._calls = StageCallBuilder(job)
        self.variant = job.ledger.variant
        kind = self._stage.writes
        self._variants = job.ledger.variants.answering(job.ledger.variant)
        self._kept = keeper.of(job.store, kind, *(variant[kind] for variant in self._variants))
        self._shared: SingleFlight[EmbeddedMedium] = SingleFlight()

    async def embed(self, upload: Upload) -> EmbeddedMedium:
        """Return the vectors of an upload. Raises HttpRefusal."""
        medium = Medium(digest=upload.digest, path=str(upload.path), kind=upload.kind, prompt="")
        try:
            embedded = await self._stored(medium)
        except BaseException:
            upload.remove()
            raise
        if embedded is None:
            return await self._shared.once_of(upload, medium.digest, lambda: self._make(medium))
        upload.remove()
        self._metrics.store_hits.inc()
        return embedded

    async def _stored(self, medium: Medium) -> EmbeddedMedium | None:
        index = await self._frames.known(medium)
        if index is None:
            return None
        for variant in self._variants:
            tasks = self._frames.tasks(medium, index, variant)
            keys = [task[self._stage.writes] for task in tasks]
            if not all(key in self._kept for key in keys):
                continue
            records = [record for key in keys if (record := await self._kept.read(key)) is not None]
            if len(records) == len(keys):
                vectors = [*map(vectors_in, records)]
                return EmbeddedMedium(index=index, tasks=tasks, vectors=vectors, cached=True)
        return None

    async def _make(self, medium: Medium) -> EmbeddedMedium:
        index = await self._frames.decode(medium, self._half)
        tasks = self._frames.tasks(medium, index)
        records: list[Record] = await asyncio.gather(*map(self._work, tasks))
        self._frames.keep(medium, index)
        self._kept.keep(records)
        vectors = [*map(vectors_in, records)]
        return EmbeddedMedium(index=index, tasks=tasks, vectors=vectors, cached=False)

    async def _work(self, task: Task) -> Record:
        item, key = self._calls.encode_item(self._stage, task), task[self._stage.writes]
        weight = self._frames.weight(task, self._half)
        record: Record = await self._frames.submit(task, self._half, key, item, weight)
        return record


def warnings_of(index: MediaIndex) -> dict[str, Json]:
    """Return the decode warnings of a medium as a response field; empty for an intact medium."""
    return {"warnings": list(index.all_warnings)} if index.all_warnings else {}


def vectors_json(medium: EmbeddedMedium, encoding: str, *, parts: bool) -> dict[str, Json]:
    """Return the vectors of an embedded medium as JSON."""

    def encode_vector(vector: NDArray[np.float32]) -> str | list[float]:
        if encoding == "json":
            return [round(float(value), 6) for value in vector]
        return base64.b64encode(vector.astype("<f2").tobytes()).decode()

    index, first = medium.index, medium.vectors[0]
    answer = {
        "kind": index.kind,
        "width": index.width,
        "height": index.height,
        "dimensions": int(first.shape[1]),
        "encoding": encoding,
        "embedding": encode_vector(first[0]),
        "key": medium.tasks[0]["embeddings"],
        **warnings_of(index),
    }
    if index.kind == "video":
        pairs = zip(medium.tasks, medium.vectors, strict=True)
        answer["embeddings"] = [
            {"time": at, "embedding": encode_vector(vector)}
            for task, vectors in pairs
            for at, vector in zip(task.chunk.times, vectors, strict=True)
        ]
    elif parts:
        boxes = shown_boxes(medium.tasks[0], index.width)
        answer["embeddings"] = [
            {"box": box, "embedding": encode_vector(vector)}
            for box, vector in zip(boxes, first, strict=True)
        ]
    return answer


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
            item = TextsItem(key, lists)
            record = await self._shared.once(key, lambda: self._half.submit(key, item, len(lists)))
            self._kept.keep([record])
        return text_vectors_in(record, lists, self._precision)


MAX_LABEL_SETS = 64
"""Label sets from requests that stay in memory."""


class Labeller:
    """The labels of one server, and those that requests contain."""

    def __init__(self, job: Job, texts: TextEmbedder, labels: LabelSet | None) -> None:
        self._model = shown_name(job.model.name)
        self._texts = texts
        self._labels = labels
        self._known: OrderedDict[tuple[str, float | None, int], LabelContext] = OrderedDict()

    @property
    def names(self) -> list[str]:
        return self._labels.names if self._labels else []

    async def labelling(
        self, names: Sequence[str], threshold: float | None, top: int
    ) -> LabelContext:
        """Return the labeling settings for these names, or for the server's labels. Raises
        HttpRefusal."""
        try:
            labels = labels_named(names) if names else self._labels
        except UsageError as error:
            raise refusal_of(error) from error
        if labels is None:
            raise HttpRefusal(
                404,
                "this server has no labels",
                "Ask with ?labels=a,b, or start it with --labels F",
            )
        key = (labels.digest, threshold, top)
        context = self._known.get(key)
        if context is None:
            texts = await self._texts.vectors(labels.texts)
            try:
                rules = label_rules(labels, texts, threshold)
            except UsageError as error:
                raise refusal_of(error) from error
            context = LabelContext(labels=labels, texts=texts, rules=rules, top=top)
            self._known[key] = context
            if len(self._known) > MAX_LABEL_SETS:
                self._known.popitem(last=False)
        return context

    def answer(self, medium: EmbeddedMedium, labelling: LabelContext) -> dict[str, Any]:
        """Return the labels of an embedded medium as JSON."""
        index = medium.index
        file = MediaFile(path=Path("upload"), media_path="", source="", kind=index.kind)
        block = [(file, task) for task in medium.tasks]
        indexes = [index] * len(block)
        chunks = list(label_vectors(self._model, labelling, block, medium.vectors, indexes))
        rows: list[Labelled] = [row for chunk in chunks for row in chunk.rows]
        fields = {
            "kind": index.kind,
            "width": index.width,
            "height": index.height,
            "model": self._model,
            "precision": rows[0].precision["vision"],
            "key": rows[0].features,
            "cached": medium.cached,
            **warnings_of(index),
        }
        if index.kind == "image":
            return {**fields, "labels": list(rows[0].labels), "top": rows[0].top}
        frames = [{"time": row.time, "labels": list(row.labels), "top": row.top} for row in rows]
        given = [(row.time or 0.0, row.given) for row in rows]
        spans = [values_of(span) for span in spans_of(given, index.end)]
        return {**fields, "frames": frames, "spans": spans}
