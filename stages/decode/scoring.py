"""The score stage: computes how sure a model is of given texts, with one pass over stored features
and without the vision half."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from artifacts.captions import CONFIDENCE
from artifacts.pack_object import DamagedRecord
from artifacts.packs import Record
from artifacts.record_union import RecordUnion, record_sets_of
from artifacts.store import open_store
from artifacts.tensors import RecordGone
from stages.decode.confidence import Confidence, offset_in, token_scores
from stages.decode.generate_kwargs import make_greedy
from stages.decode.prompts import context_left, end_ids_of, start_ids
from stages.decode.score_job import ScoreItem, ScoreJob
from stages.decode.stored import read_features
from stages.decode.teacher_forcing import (
    ForcedCaption,
    caption_of,
    forced_logits,
    forced_logits_stepwise,
    is_bidirectional,
)
from stages.memory.item_faults import ItemFault, ItemFaults
from stages.memory.oom_retry import OomRetry, split_batch
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.processors.answers import before_whole
from stages.models.streaming.load import run_calls
from stages.process.job import parse_job
from stages.process.report import EventReporter

STAGE, KIND = "score", "scores"
TEXTS_PER_PASS = 8
"""Texts that are scored one after another; with streamed layers they pass each layer together."""
PUBLISH_SECONDS = 1.0
"""How long finished scores wait for others, because each publication is one pack file."""


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Publish the scores of each item without them. An item without features, one that is too
    large, and one on which the model raises are reported and left out."""
    job = parse_job(ScoreJob, fields)
    places = [("features", name) for name in job.features_namespaces]
    scores, *features = record_sets_of(open_store(job.store), (KIND, job.namespace), *places)
    left = [item for item in job.items if item.key not in scores]
    report.total(len(left))
    if not left:
        return
    source = ModelJob.of(replace(job.half, lockstep=True))
    processor, half = source.processor(), source.load_reloadable("language")
    report.note(ready=True, **facts(half.model))
    scorer = Scorer(job, processor, RecordUnion(features), report)

    def compute(items: Sequence[ScoreItem]) -> list[Record]:
        made: list[Record] = half.call(partial(scorer.records, items))
        half.confirm()
        return made

    def fail(item: ScoreItem, fault: ItemFault) -> None:
        report.failure(item.key, **fault.meta(STAGE))

    def publish() -> None:
        scores.publish(ready)
        for record in ready:
            report.item(record.key, tokens=record.meta["tokens"])
        ready.clear()

    faults = ItemFaults(STAGE, fail, len(left))
    retry = OomRetry(report, lambda: compute(left[-1:]), faults)
    ready: list[Record] = []
    since = time.monotonic()
    for batch in split_batch(left, TEXTS_PER_PASS):
        for _, made in retry.run_batch(batch, lambda item: item.key, compute):
            ready += made
        if time.monotonic() - since >= PUBLISH_SECONDS:
            publish()
            since = time.monotonic()
    publish()
    faults.close()


class Scorer:
    """Scores texts with a half."""

    def __init__(
        self, job: ScoreJob, processor: Any, features: RecordUnion, report: EventReporter
    ) -> None:
        self._job = job
        self._processor = processor
        self._features = features
        self._report = report
        self._half: Any = None
        self._stepwise: bool | None = None
        """Whether the half would see later tokens in one pass; None: unknown."""

    def records(self, items: Sequence[ScoreItem], half: Any) -> list[Record]:
        """Return the scores of these items."""
        if half is not self._half:
            make_greedy(half, self._processor)
            # llama.cpp returns the last logits alone.
            self._half, self._stepwise = half, True if self._job.half.gguf else None
        captions = list(self._captions(items))
        for _, caption in captions:
            if self._stepwise is None and caption.ids.shape[1] > 1:
                test = partial(is_bidirectional, half, self._processor, caption)
                (self._stepwise,) = run_calls(half, [test])
        return run_calls(half, [partial(self._record, half, *each) for each in captions])

    def _captions(self, items: Sequence[ScoreItem]) -> Iterator[tuple[ScoreItem, ForcedCaption]]:
        """Yield the items with their tokens. If features are gone, report a failure."""
        for item in items:
            try:
                row = read_features(self._features, item.features)
            except (DamagedRecord, RecordGone) as error:
                message = getattr(error, "message", str(error))
                self._report.failure(item.key, "gone", message, "Encode the media again")
                continue
            start = self._job.generation.start_with
            start = start if item.text.startswith(start) else ""
            params = replace(self._job.generation, start_with=f"{self._before(item)}{start}")
            rest = item.text.removeprefix(start)
            yield item, caption_of(self._processor, row, item.prompt, rest, params)

    def _before(self, item: ScoreItem) -> str:
        """Return what ends the reasoning before a text."""
        return before_whole(self._processor, item.text) if item.behind_reasoning else ""

    def _record(self, half: Any, item: ScoreItem, caption: ForcedCaption) -> Record:
        ids = caption.ids[0].tolist()
        left = context_left(half, caption.inputs(half, self._processor))
        if left is not None and len(ids) >= left:
            return Record(key=item.key, meta={**dict.fromkeys(CONFIDENCE), "tokens": len(ids)})
        forced = forced_logits if self._stepwise is False else forced_logits_stepwise
        logits = forced(half, self._processor, caption)
        if item.ended and (ends := end_ids_of(half)):
            ids.append(max(ends, key=lambda end: float(logits[len(ids), end])))
        scores = token_scores(logits[: len(ids)], torch.tensor(ids)).tolist() if ids else []
        fields = Confidence.of(scores).fields(partial(self._place, item, caption))
        return Record(
            key=item.key, meta={**dict.fromkeys(CONFIDENCE), **fields, "tokens": len(ids)}
        )

    def _place(self, item: ScoreItem, caption: ForcedCaption, index: int) -> int | None:
        start = start_ids(self._processor, caption.params)[0].tolist()
        ids = [*start, *caption.ids[0].tolist()]
        rows = [ids[: len(start) + index], ids]
        before, whole = self._processor.batch_decode(rows, skip_special_tokens=True)
        ended = self._before(item).lstrip()
        at = offset_in(f"{ended}{item.text}", before, whole)
        return None if at is None or not item.text else max(0, at - len(ended))
