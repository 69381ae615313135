"""The `inflight` engine: continuous batching in a fixed pool of KV-cache slots.

Each prompt is prefilled alone and then decoded in a slot until its caption ends. No request waits
for a batch, and a caption's bytes depend only on its own sequence.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from stages.decode.engines import AUTO, engines_for
from stages.decode.engines.inflight.recorded import recorder_for
from stages.decode.engines.inflight.request_prefill import RequestPrefill
from stages.decode.engines.inflight.scheduler import (
    InflightScheduler,
    RequestPrefetcher,
    SequenceState,
    prefetch_requests,
)
from stages.decode.engines.inflight.slot_check import SlotCheck, slot_count
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.first_token import first_token_fields
from stages.decode.generate_kwargs import GenerateKwargs
from stages.decode.generation import DecodeJob
from stages.decode.protocol import CaptionOutput, DecodeRequest, OnPartial
from stages.memory.oom_retry import OomRetry, try_items
from stages.models.finite import not_finite

PARTIAL_INTERVAL_SECONDS = 0.1
"""Minimum time between two partial captions of a sequence."""
PUBLISH_INTERVAL_SECONDS = 1.0
"""How long finished captions wait for others, because each publication is one pack file."""


class InflightEngine:
    """A language half that generates captions in slots."""

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        self._transformers = TransformersEngine(job)
        self._engine = engines_for(job.engine)[0]
        shares, whole = self._engine.by_chunk, job.for_clients
        self._prefill = RequestPrefill(self._transformers, shares=shares, whole=whole)
        self._recorder = recorder_for(job.half)
        self._check = SlotCheck(job, self._engine, self._prefill, self._recorder)
        self._scheduler: InflightScheduler | None = None
        self._on_partial: OnPartial | None = None

    def load_info(self) -> dict[str, Json]:
        return self._transformers.load_info()

    def resolve_engine(self, request: DecodeRequest) -> str:
        """Return the name of the engine that will run, after checking slots with this request.
        Raises UsageError if only this engine is allowed and it cannot run."""
        reason = self._check.run(request).reason
        if not reason:
            return self._engine.name
        if len(engines_for(self._job.engine)) == 1:
            raise UsageError(
                f"engine {self._engine.name} does not work with this model: {reason}",
                hint=f"Use --engine {AUTO} or {self._transformers.name}",
            )
        return self._transformers.name

    def refusal(self, request: DecodeRequest) -> UsageError | None:
        return self._transformers.refusal(request)

    def run_stats(self) -> dict[str, Any]:
        check, stats = self._check.result, self._transformers.run_stats()
        stats |= {"check_seconds": round(self._check.seconds, 3)}
        if check.rejected:
            stats |= {"rows_reason": check.rejected}
        if check.reason:
            return stats | {"engine": self._transformers.name, "engine_reason": check.reason}
        stats |= self.caption_fields() | {"prefill_seconds": round(self._prefill.seconds, 3)}
        if self._scheduler is not None:
            usage = self._scheduler.usage
            stats |= {"slots": self._scheduler.slots, "row_steps": usage["row_steps"]}
            stats |= {"row_steps_used": usage["row_steps_used"]}
        stats |= self._recorder.stats() if self._recorder else {}
        if self._engine.by_chunk:
            stats |= {"shared_prefix": self._prefill.prefix is not None}
        if self._check.no_prefix_reason:
            stats |= {"shared_prefix_reason": self._check.no_prefix_reason}
        return stats | {"engine": self._engine.name}

    def caption_fields(self) -> dict[str, int]:
        return self._check.caption_fields()

    def run(
        self, batches: Iterable[Sequence[DecodeRequest]], oom_retry: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        """Yield captions as they end, those of one interval together."""
        if self._check.result.reason:
            yield from self._transformers.run(batches, oom_retry)
            return
        with prefetch_requests(batches) as rows:
            yield from self._publish_groups(rows, oom_retry)

    def set_on_partial(self, on_partial: OnPartial) -> None:
        self._on_partial = on_partial

    def generate_batch(self, requests: Sequence[DecodeRequest]) -> Sequence[CaptionOutput]:
        """Return the captions of these requests; each runs alone in a pool."""
        if self._check.result.reason:
            return self._transformers.generate_batch(requests)
        assert self._scheduler is not None
        return [self._output(self._scheduler.run_alone(one)) for one in requests]

    def _publish_groups(
        self, rows: RequestPrefetcher, oom_retry: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        self._scheduler = InflightScheduler(
            self._prefill,
            oom_retry,
            self._check.result.layout,
            slots=slot_count(self._job),
            lag=int(self._job.half.device != "cpu"),
            on_token=self._send_partial if self._on_partial else None,
            recorder=self._recorder,
        )
        ended: list[SequenceState] = []
        interval = 0.0 if self._job.for_clients else PUBLISH_INTERVAL_SECONDS
        since = time.monotonic()
        for state in self._scheduler.run(rows):
            if state is not None:
                ended.append(state)
            # Publish before waiting for another process, because that process may wait for these
            # captions.
            if ended and (state is None or time.monotonic() - since >= interval):
                yield self._collect(ended, oom_retry)
                ended, since = [], time.monotonic()
        if ended:
            yield self._collect(ended, oom_retry)

    def _collect(
        self, ended: list[SequenceState], oom_retry: OomRetry
    ) -> tuple[list[DecodeRequest], list[CaptionOutput]]:
        """Return requests and captions of ended sequences, without those whose decoding fails."""
        pairs = []
        for state in ended:
            outputs, message, fault = try_items(partial(self._output, state))
            if message is not None:
                raise MemoryError(message)
            if fault is not None:
                oom_retry.faults.add(state.request, fault)
            pairs += [(state.request, one) for one in outputs]
        return [request for request, _ in pairs], [one for _, one in pairs]

    def _send_partial(self, state: SequenceState) -> None:
        """Send the partial caption of a sequence, at most once per interval."""
        now = time.monotonic()
        if self._on_partial is None or now - state.last_partial_at < PARTIAL_INTERVAL_SECONDS:
            return
        state.last_partial_at = now
        # Skip a sequence whose decoding to text fails: its end reports the error.
        for text in try_items(partial(self._text, state))[0]:
            self._on_partial(state.request, text, len(state.output_ids))

    def _output(self, state: SequenceState) -> CaptionOutput:
        self._transformers.half.confirm()
        assert state.finish_reason is not None
        if state.fault is not None:
            return CaptionOutput("", 0, state.finish_reason, fault=state.fault)
        if not state.confidence.is_finite:
            raise not_finite(self._job.half)
        text = self._text(state)
        stopped = state.stopped is not None and state.stopped(state.output_ids)
        tokens, read = len(state.output_ids), state.prompt_tokens
        output = CaptionOutput(text, tokens, state.finish_reason, read, stopped)
        generate_kwargs, processor = self._settings(state), self._transformers.processor
        place = partial(generate_kwargs.offset_of, processor, state.output_ids, text)
        fields = self._transformers.opened(state.request)
        fields |= generate_kwargs.reasoning(processor, state.output_ids, text)
        if generate_kwargs.request and state.first_logits is not None:
            fields |= first_token_fields(processor, state.first_logits, generate_kwargs.request)
        return output._replace(fields=fields | state.confidence.fields(place))

    def _text(self, state: SequenceState) -> str:
        return self._settings(state).texts_of(self._transformers.processor, [state.output_ids])[0]

    def _settings(self, state: SequenceState) -> GenerateKwargs:
        return self._transformers.generate_kwargs.of(state.request.item)
