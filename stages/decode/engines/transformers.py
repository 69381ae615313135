"""The `transformers` engine: calls `generate` once per batch.

A batch runs until all of its rows have ended. The checkpoint's own sampling settings are ignored
unless the user requests them, so the same features and prompt give the same caption. A batch is
always computed whole, because rounding depends on its rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.texts.captions import Ended
from stages.decode.chunked_prefill import PrefillOptions
from stages.decode.confidence import LogitsWatch
from stages.decode.first_token import first_token_fields
from stages.decode.generate_kwargs import GenerateKwargs
from stages.decode.generation import DecodeJob, RequestSettings, SamplingParams
from stages.decode.prompts import ContextExceeded, prompts_for
from stages.decode.protocol import CaptionOutput, DecodeRequest, OnPartial
from stages.memory.oom_retry import OomRetry
from stages.models.finite import not_finite
from stages.models.halves.features import Features
from stages.models.halves.generate import generate, new_tokens, prompt_in
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob, facts
from stages.models.processors.input_layout import layout_of
from stages.models.processors.prepare import opens_reasoning
from stages.models.processors.processor_calls import TEXT_IDS
from stages.models.protocols import Half, Processor, Tree


class TransformersEngine:
    """A language half, with the settings of its prefill and its KV cache."""

    name = "transformers"

    def __init__(self, job: DecodeJob) -> None:
        self._job, source = job, ModelJob.of(job.half)
        self.generate_kwargs = GenerateKwargs(job.generation, job.max_new_tokens)
        self.prefill_options = PrefillOptions(job.prefill, job.kv, source.device)
        self.processor = source.processor()
        self.half = source.load_reloadable("language")
        """The half. Other engines use the processor, the settings and the half for prefill, too."""

    def load_info(self) -> dict[str, Json]:
        return facts(self.half.model)

    def resolve_engine(self, request: DecodeRequest) -> str:
        return self.name

    def refusal(self, request: DecodeRequest) -> UsageError | None:
        generate_kwargs, prompts = self.generate_kwargs.of(request.item), [request.item.prompt]

        def check(half: Half) -> UsageError | None:
            inputs = prompts_for(
                half, self.processor, [request.features], prompts, generate_kwargs.generation
            )
            try:
                generate_kwargs.bounded(half, inputs, [request.item], whole=False)
            except ContextExceeded as error:
                return error
            return None

        return self.half.call(check)

    def opened(self, request: DecodeRequest) -> dict[str, Json]:
        """Return the field of a record that says whether its prompt ends inside of reasoning; none
        for a chat template without such tags."""
        system = self.generate_kwargs.of(request.item).generation.system
        layout = layout_of(self.processor, request.features.channel)
        opened = opens_reasoning(self.processor, layout, request.item.prompt, system)
        return {} if opened is None else {"opened": opened}

    def caption_fields(self) -> dict[str, int]:
        return {}

    def run_stats(self) -> dict[str, Any]:
        return {"prefill_way": self.prefill_options.mode}

    def run(
        self, batches: Iterable[Sequence[DecodeRequest]], oom_retry: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], list[CaptionOutput]]]:
        """Yield the captions of each batch, in pieces that fit into memory."""
        for batch in batches:
            active = [one for one in batch if not one.is_withdrawn]
            if active:
                yield from oom_retry.run_batch(
                    active, lambda one: one.item.key, self.generate_batch
                )
            del batch, active  # a kept reference would keep its requests alive

    def set_on_partial(self, on_partial: OnPartial) -> None:
        """Ignore the callback: `generate` returns a batch only when all of it has ended."""

    def generate_batch(self, requests: Sequence[DecodeRequest]) -> list[CaptionOutput]:
        return self.half.call(partial(self._generate, requests))

    def _generate(self, requests: Sequence[DecodeRequest], half: Half) -> list[CaptionOutput]:
        by_index: dict[int, CaptionOutput] = {}
        for indexes in _groups(requests):
            group = [requests[index] for index in indexes]
            try:
                outputs = self._generate_group(group, half)
            except UsageError as error:
                if isinstance(error, ContextExceeded) and len(group) > 1:
                    outputs = [one for alone in group for one in self._generate([alone], half)]
                elif group[0].item.settings or isinstance(error, ContextExceeded):
                    outputs = [CaptionOutput("", 0, "stop", fault=error) for _ in group]
                else:
                    raise
            by_index.update(zip(indexes, outputs, strict=True))
        return [by_index[index] for index in range(len(requests))]

    def _generate_group(self, requests: Sequence[DecodeRequest], half: Half) -> list[CaptionOutput]:
        """Return the captions of rows with the same settings, from one call of `generate`."""
        items, rows = [one.item for one in requests], [one.features for one in requests]
        generate_kwargs = self.generate_kwargs.of(items[0])
        options = self.prefill_options.options(half, self.processor, rows[0])
        options |= generate_kwargs.options(half, self.processor, items)
        is_live = self._job.for_clients and requests[0].work is not None
        if is_live:
            options["stopping_criteria"] = StoppingCriteriaList(
                [partial(_ends_withdrawn, requests)]
            )
        inputs = prompts_for(
            half, self.processor, rows, [item.prompt for item in items], generate_kwargs.generation
        )
        generate_kwargs = generate_kwargs.bounded(half, inputs, items, whole=is_live)
        features = Features.of(rows)
        outputs = [
            *run_generate(half, self.processor, inputs, features, generate_kwargs, **options)
        ]
        if all(output.is_finite is False for output in outputs):
            raise not_finite(self._job.half)
        return [
            output._replace(fields=self.opened(one) | dict(output.fields))
            if output.is_finite
            else output._replace(fault=not_finite(self._job.half, seen=output.is_finite is False))
            for one, output in zip(requests, outputs, strict=True)
        ]


class EndsAtStopString(StoppingCriteria):
    """Ends each row of a batch at the first stop string."""

    def __init__(self, generate_kwargs: GenerateKwargs, processor: Processor) -> None:
        self._generate_kwargs, self._processor = generate_kwargs, processor
        self._prompt_length: int | None = None
        """Number of tokens before the first generated one. The first call follows that token."""

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.BoolTensor:
        """Return which rows end here, of shape [rows]."""
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1] - 1
        rows = input_ids[:, self._prompt_length :].tolist()
        ended = [self._generate_kwargs.stopped(self._processor, row) for row in rows]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]


def _ends_withdrawn(
    requests: Sequence[DecodeRequest], ids: torch.Tensor, scores: torch.Tensor, **_: Any
) -> torch.Tensor:
    """A stopping criterion: return for each row whether all rows have been withdrawn, of shape
    [rows]."""
    ended = all(one.is_withdrawn for one in requests)
    return torch.full(ids.shape[:1], ended, device=ids.device)


def generate_rows(
    half: Half,
    processor: Processor,
    rows: Sequence[FeatureRecord],
    prompts: Sequence[str],
    max_new_tokens: int,
    **options: Any,
) -> Iterator[CaptionOutput]:
    """Yield captions of at most `max_new_tokens` tokens from one call of `generate`."""
    params = SamplingParams()
    inputs = prompts_for(half, processor, rows, prompts, params)
    features = Features.of(rows)
    generate_kwargs = GenerateKwargs(params, max_new_tokens)
    yield from run_generate(half, processor, inputs, features, generate_kwargs, **options)


def run_generate(
    half: Half,
    processor: Processor,
    inputs: Mapping[str, Any],
    features: Mapping[str, Tree],
    generate_kwargs: GenerateKwargs,
    **options: Any,
) -> Iterator[CaptionOutput]:
    """Yield the captions of prepared inputs, up to the limit and a stop string."""
    if generate_kwargs.stop:
        endings = [EndsAtStopString(generate_kwargs, processor)]
        endings += options.get("stopping_criteria", ())
        options["stopping_criteria"] = StoppingCriteriaList(endings)
    request = generate_kwargs.request
    measured = request if request and request.measures else None
    watch = LogitsWatch(keeps_first=measured is not None)
    options["max_new_tokens"] = generate_kwargs.limit
    generated = _generate_watched(half, inputs, features, options, watch)
    new = new_tokens(generated, prompt_in(half, inputs)).cpu()
    rows = new.tolist()
    ids = next((inputs[name] for name in TEXT_IDS if name in inputs), new[:, :0])
    read = inputs.get("attention_mask", torch.ones_like(ids)).sum(-1).tolist()
    lengths, stopped = _lengths(half, new), [False] * len(rows)
    for at, (tokens, _) in enumerate(lengths):
        if generate_kwargs.stopped(processor, rows[at][:tokens]):
            counts = range(1, tokens + 1)
            tokens = next(n for n in counts if generate_kwargs.stopped(processor, rows[at][:n]))
            lengths[at], rows[at], stopped[at] = (tokens, "stop"), rows[at][:tokens], True
    texts = generate_kwargs.texts_of(processor, rows)
    confidences = watch.confidences(new, [tokens for tokens, _ in lengths])
    every = zip(texts, lengths, read, stopped, confidences, rows, strict=True)
    for at, (text, (tokens, ended), count, was_stopped, confidence, row) in enumerate(every):
        output = CaptionOutput(text, tokens, ended, int(count), was_stopped)
        fields: dict[str, Json] = {**generate_kwargs.reasoning(processor, row[:tokens], text)}
        is_finite: bool | None = None if ended == "length" and not text else True
        if confidence is not None:
            is_finite = confidence.is_finite
            place = partial(generate_kwargs.offset_of, processor, row[:tokens], text)
            fields |= confidence.fields(place)
        if measured and watch.first is not None and is_finite:
            fields |= first_token_fields(processor, watch.first[at], measured)
        yield output._replace(fields=fields, is_finite=is_finite)


def _generate_watched(
    half: Half,
    inputs: Mapping[str, Tree],
    features: Mapping[str, Tree],
    options: Mapping[str, Any],
    watch: LogitsWatch,
) -> torch.Tensor:
    """Return the tokens of `generate`, whose logits `watch` sees unless it is a model's own and
    does not take that."""
    try:
        return generate(half, inputs, features, custom_generate=watch.sample, **options)
    except (TypeError, ValueError) as error:
        if "custom_generate" not in str(error):
            raise
    return generate(half, inputs, features, **options)


def _groups(requests: Sequence[DecodeRequest]) -> Iterator[list[int]]:
    """Yield the indexes of rows that can be decoded together. Images and videos cannot, nor can
    rows with different settings."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, one in enumerate(requests):
        groups.setdefault((one.features.joins_with(index), *_settings(one)), []).append(index)
    yield from groups.values()


def _settings(one: DecodeRequest) -> tuple[str, ...]:
    """Return the key by which rows share a call of `generate`. Sampled rows and rows with a schema
    run alone: their rounding must not depend on other rows, and one error must not end several."""
    text = one.item.settings
    if not text:
        return ()
    generation = RequestSettings.from_text(text).generation
    is_isolated = generation.is_sampled or generation.schema
    return (text, one.item.key) if is_isolated else (text,)


def _lengths(half: Half, new: torch.Tensor) -> list[tuple[int, Ended]]:
    """Return the number of tokens of each row, its end token included, and its finish reason."""
    ends = half.generation_config.eos_token_id
    known = torch.tensor([ends] if isinstance(ends, int) else list(ends or ()), dtype=new.dtype)
    lengths: list[tuple[int, Ended]] = []
    for row in new:
        stops = torch.isin(row, known).nonzero()
        lengths.append((int(stops[0]) + 1, "stop") if len(stops) else (len(row), "length"))
    return lengths
