"""The texts stage: turns each group of texts into one record of vectors, in one process."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import normalize

from artifacts.disk.json_shapes import Json
from artifacts.errors import CannotFit, NotFinite, StageDied, UsageError
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.records.vectors import vector_record
from stages.embed_texts import TextsItem, TextsJob
from stages.memory.oom_retry import ItemFault, ItemFaults, OomRetry, split_batch
from stages.models.finite import is_finite, not_finite
from stages.models.halves.features import logits, max_text_tokens, text_vectors
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.protocols import Half, Processor, Tree
from stages.process.events import EventReporter, TooLarge
from stages.process.job import JobFields, parse_job
from stages.process.requests import Requests

PROBES = 6
"""Number of vectors whose logits are fitted."""
EXACT, ROUNDED = 1e-5, 8.0
"""Maximum residual of the fit: a share of the largest logit, or units in the last place of the
dtype, whichever is larger."""


def fit_logit_scale(
    half: Half, inputs: Mapping[str, Tree], vectors: torch.Tensor
) -> tuple[float, float]:
    """Return scale and bias of a model: the logit of an image and a text is `scale * cosine +
    bias`. `vectors` are those of the texts in `inputs`.
    Raises UsageError for a model with another formula, and NotFinite."""
    texts = vectors.double().cpu()
    drawn = torch.randn(PROBES, texts.shape[1], generator=torch.Generator().manual_seed(0))
    # Mix each probe with a text's direction, so that cosines of every size occur.
    share = torch.linspace(-1, 1, PROBES)[:, None]
    towards = texts[torch.arange(PROBES) % len(texts)].float()
    length = towards.norm(dim=1, keepdim=True)
    probes = share * towards + (1 - share.abs()) * length * drawn / drawn.norm(dim=1, keepdim=True)
    scores = logits(half, inputs, probes).double().cpu()
    if not is_finite(scores):
        raise NotFinite("the scores of texts are NaN or infinite")
    queries = probes.to(half.dtype).double()
    cosines = torch.cosine_similarity(queries[:, None], texts[None], dim=2).flatten()
    table = torch.stack([cosines, torch.ones_like(cosines)], dim=1)
    values = scores.flatten()
    fitted = torch.linalg.lstsq(table, values[:, None]).solution[:, 0]
    residual = (table @ fitted - values).abs().max().item()
    allowed = max(EXACT, ROUNDED * torch.finfo(half.dtype).eps) * max(
        1.0, values.abs().max().item()
    )
    if not residual <= allowed:  # also fails for NaN
        raise UsageError(
            f"{type(half).__name__} does not compute its scores with a scale and a bias "
            f"(off by {residual:.2g})",
            hint="Choose a CLIP-like model: docs/embed.md lists them",
        )
    scale, bias = fitted.tolist()
    if scale <= 0:
        raise NotFinite("the scores of all texts are the same")
    return scale, bias if abs(bias) > allowed else 0.0


ALIKE = 0.999
"""Minimum cosine of two vectors of the same text."""
PROBE_TEXT = "a photo of a cat"


class TextReader:
    """Builds one half's inputs from texts."""

    def __init__(self, processor: Processor, half: Half) -> None:
        self._processor = processor
        self.max_tokens = max_text_tokens(processor, half)
        """Maximum number of tokens of a text; 0: unknown."""
        self.padded = self._depends_on_padding(half)
        """Whether texts are padded to that length."""

    def inputs(self, texts: Sequence[str], *, padded: bool | None = None) -> dict[str, Any]:
        """Return the half's inputs for these texts. Texts that are too long are truncated."""
        padded = self.padded if padded is None else padded
        options: dict[str, Json] = {"padding": "max_length" if padded else True}
        if self.max_tokens:
            options |= {"truncation": True, "max_length": self.max_tokens}
        tokenized = self._processor(text=list(texts), return_tensors="pt", **options)
        return {name: value for name, value in tokenized.items() if value is not None}

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Return the indexes of texts that are longer than the half's limit."""
        if not self.max_tokens:
            return []
        untruncated = self._processor.tokenizer(list(texts), truncation=False)["input_ids"]
        return [at for at, ids in enumerate(untruncated) if len(ids) > self.max_tokens]

    def _depends_on_padding(self, half: Half) -> bool:
        if not self.max_tokens:
            return False
        bare, padded = (
            text_vectors(half, self.inputs([PROBE_TEXT], padded=is_padded)).float()
            for is_padded in (False, True)
        )
        return bool(torch.cosine_similarity(bare, padded).item() < ALIKE)


STAGE = "embed_texts"
FIT_TEXTS = 3
"""Number of texts for the fit."""


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Publish one vector per group of texts: the normalized mean of their normalized vectors."""
    job = parse_job(TextsJob, job_fields)
    records = RecordSet(open_store(job.store), "texts", job.namespace)
    report.total(1)
    if job.key in records:
        return
    encoder = _TextEncoder(ModelJob.of(job.half), job.batch, report)
    if not job.requests:
        records.publish([encoder.record(job.key, job.groups)])
        report.answered(job.key)
        return
    sent = Requests(job.requests, TextsItem, report, for_clients=True)
    with sent:
        for item in (one.item for batches in sent for batch in batches for one in batch):
            try:
                records.publish([encoder.record(item.key, item.groups)])
                report.answered(item.key)
            except CannotFit as error:  # the texts of other requests may be shorter
                report.send(TooLarge(key=item.key, wanted_bytes=0, error=error.message))
            except (UsageError, StageDied) as error:
                report.failure(item.key, "model", error.message, error.hint)
            records.forget([item.key])


class _TextEncoder:
    """The text half, and the function that runs texts through it."""

    def __init__(self, source: ModelJob, batch: int, report: EventReporter) -> None:
        processor = source.processor()
        self._half = source.load_reloadable("language")
        report.note(ready=True, **facts(self._half.model))
        self._report, self._batch, self._job = report, batch, source
        self._reader: TextReader = self._half.call(lambda model: TextReader(processor, model))

    def record(self, key: str, groups: Sequence[Sequence[str]]) -> Record:
        """Return the record of these groups' vectors. Raises CannotFit, and UsageError if the model
        raises on a text."""
        texts = [text for group in groups for text in group]
        faults = ItemFaults(STAGE, _refuse, min(len(texts), self._batch))
        oom_retry = OomRetry(self._report, lambda: self._compute(texts[:1]), faults)
        parts = [
            vectors
            for batch in split_batch(texts, self._batch)
            for _, vectors in oom_retry.run_batch(batch, str, self._compute)
        ]
        faults.close()
        if sum(map(len, parts)) < len(texts):
            raise CannotFit("a text does not fit into memory", hint="Shorten it; raise --memory")
        inputs = self._reader.inputs(texts[:FIT_TEXTS])
        try:
            scale, bias = self._half.call(
                lambda model: fit_logit_scale(model, inputs, text_vectors(model, inputs))
            )
        except NotFinite as error:
            fault = not_finite(self._job)
            raise StageDied(fault.message, hint=fault.hint) from error
        vectors = mean_directions(torch.cat(parts), list(map(len, groups)))
        record = vector_record(key, vectors.numpy())
        cut = {"cut": self._reader.cut(texts), "tokens": self._reader.max_tokens}
        return replace(record, meta={**record.meta, "scale": scale, "bias": bias, **cut})

    def _compute(self, some: Sequence[str]) -> torch.Tensor:
        vectors: torch.Tensor = self._half.call(
            lambda model: text_vectors(model, self._reader.inputs(some))
        )
        if not is_finite(vectors):
            raise not_finite(self._job)
        return vectors.float().cpu()


def _refuse(text: str, fault: ItemFault) -> None:
    raise UsageError(
        f"the model raises on the text {text[:80]!r} ({fault})",
        hint=fault.hint or "Leave that text out, or use another model",
    )


def mean_directions(vectors: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return one normalized vector per group; `counts` are the group sizes."""
    groups = torch.split(normalize(vectors, dim=1), list(counts))
    return normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=1)
