"""The texts stage: groups of texts to one record of vectors, in one process. It knows neither
pictures nor what the vectors are for."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.nn.functional import normalize

from artifacts.errors import CannotFit, UsageError
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from artifacts.vectors import vector_record
from stages.embed_texts.job import TextsItem, TextsJob
from stages.embed_texts.line import LogitLine, line_of
from stages.embed_texts.reading import TextReader
from stages.memory.item_faults import ItemFault, ItemFaults
from stages.memory.shrinking import Shrinking, pieces
from stages.models.halves.vectors import text_vectors
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.process.events import Published
from stages.process.job import items_of, job_of
from stages.process.live import lines_of
from stages.process.report import Report

STAGE = "embed_texts"
LINE_TEXTS = 3
"""Texts of which logits are asked to find the line."""


def run(told: dict[str, Any], report: Report) -> None:
    """Publish one vector a group of texts: the mean of theirs, each of length 1, of length 1."""
    job = job_of(TextsJob, told)
    records = RecordSet(open_store(job.store), "texts", job.namespace)
    report.total(1)
    if job.key in records:
        return
    making = _Making(ModelJob.of(job.half), job.batch, report)
    if not job.live:
        records.publish([making.record(job.key, job.groups)])
        report.item(job.key)
        return
    for line in lines_of(job.live):
        for each in items_of(TextsItem, line):
            with contextlib.suppress(CannotFit):  # a sentence of any length: the others may fit
                try:
                    records.publish([making.record(each.key, each.groups)])
                    report.send(Published(keys=(each.key,)))
                except UsageError as error:
                    report.failure(each.key, "model", error.message, error.hint)
            records.leave([each.key])


class _Making:
    """The text half, and how texts go through it."""

    def __init__(self, source: ModelJob, batch: int, report: Report) -> None:
        processor = source.processor()
        self._half = source.hold("language")
        report.note(ready=True, **facts(self._half.model))
        self._report, self._batch = report, batch
        self._reader: TextReader = self._half.use(lambda model: TextReader(processor, model))

    def record(self, key: str, groups: Sequence[Sequence[str]]) -> Record:
        """Return the record of the vectors of these groups. Raises CannotFit, and UsageError where
        the model raises on one of the texts."""
        texts = [text for group in groups for text in group]
        faults = ItemFaults(STAGE, _refuse, min(len(texts), self._batch))
        shrinking = Shrinking(self._report, lambda: self._compute(texts[:1]), faults)
        made = [
            vectors
            for batch in pieces(texts, self._batch)
            for _, vectors in shrinking.through(batch, str, self._compute)
        ]
        faults.close()
        every = torch.cat(made)
        line: LogitLine = self._half.use(lambda model: _line(model, self._reader, texts))
        record = vector_record(key, mean_directions(every, list(map(len, groups))).numpy())
        cut = {"cut": self._reader.cut(texts), "tokens": self._reader.most}
        return replace(record, meta={**record.meta, **asdict(line), **cut})

    def _compute(self, some: Sequence[str]) -> torch.Tensor:
        made: torch.Tensor = self._half.use(
            lambda model: text_vectors(model, self._reader.inputs(some))
        )
        return made.float().cpu()


def _refuse(text: str, fault: ItemFault) -> None:
    raise UsageError(
        f"the model's own code fails on the text {text[:80]!r} ({fault})",
        hint="Leave that text out, or give another model",
    )


def _line(half: Any, reader: TextReader, texts: Sequence[str]) -> LogitLine:
    inputs = reader.inputs(texts[:LINE_TEXTS])
    return line_of(half, inputs, text_vectors(half, inputs))


def mean_directions(vectors: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return one vector of length 1 for each group of so many vectors."""
    groups = torch.split(normalize(vectors, dim=1), list(counts))
    return normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=1)
