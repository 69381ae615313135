"""The texts stage: groups of texts to one record of vectors, in one process. It knows neither
pictures nor what the vectors are for."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.nn.functional import normalize

from artifacts.packs import RecordSet
from artifacts.store import open_store
from artifacts.vectors import vector_record
from stages.embed_texts.job import TextsJob
from stages.embed_texts.line import LogitLine, line_of
from stages.embed_texts.reading import TextReader
from stages.memory.shrinking import Shrinking, pieces
from stages.models.halves.vectors import text_vectors
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.process.job import job_of
from stages.process.report import Report

LINE_TEXTS = 3
"""Texts of which logits are asked to find the line."""


def run(told: dict[str, Any], report: Report) -> None:
    """Publish one vector a group of texts: the mean of theirs, each of length 1, of length 1."""
    job, source = job_of(TextsJob, told), ModelJob.of(told)
    records = RecordSet(open_store(job.store), "texts", job.namespace)
    report.total(1)
    if job.key in records:
        return
    processor, half = source.processor(), source.hold("language")
    report.note(ready=True, **facts(half.model))
    texts = [text for group in job.groups for text in group]
    reader: TextReader = half.use(lambda model: TextReader(processor, model))

    def compute(some: Sequence[str]) -> torch.Tensor:
        made: torch.Tensor = half.use(lambda model: text_vectors(model, reader.inputs(some)))
        return made.float().cpu()

    shrinking = Shrinking(report, lambda: compute(texts[:1]))
    every = torch.cat(
        [
            made
            for batch in pieces(texts, job.batch)
            for _, made in shrinking.through(batch, str, compute)
        ]
    )
    line: LogitLine = half.use(lambda model: _line(model, reader, texts))
    record = vector_record(job.key, mean_directions(every, list(map(len, job.groups))).numpy())
    meta = {**record.meta, **asdict(line), "cut": reader.cut(texts), "tokens": reader.most}
    records.publish([replace(record, meta=meta)])
    report.item(job.key)


def _line(half: Any, reader: TextReader, texts: Sequence[str]) -> LogitLine:
    inputs = reader.inputs(texts[:LINE_TEXTS])
    return line_of(half, inputs, text_vectors(half, inputs))


def mean_directions(vectors: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return one vector of length 1 for each group of so many vectors."""
    groups = torch.split(normalize(vectors, dim=1), list(counts))
    return normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=1)
