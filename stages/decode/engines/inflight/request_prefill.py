"""Prefills the prompts of requests, one by one, from the prefix of their chunk where prompts share
it."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

from stages.decode.engines.inflight.prefill import PrefilledSequence, SharedPrefix, prefill_row
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.prompts import prompts_for
from stages.decode.protocol import DecodeRequest
from stages.models.halves.features import Features
from stages.models.protocols import Half


class RequestPrefill:
    """Prefills requests, and measures how long that takes."""

    def __init__(self, transformers: TransformersEngine, *, shares: bool, whole: bool) -> None:
        """`shares`: prompts of a chunk share the KV cache of their prefix. `whole`: a whole caption
        has to fit into the context."""
        self._transformers = transformers
        self._whole = whole
        self.half = transformers.half
        self.prefix = SharedPrefix() if shares else None
        """KV cache of the prefix that prompts of a chunk share; None: no prefix is shared."""
        self.seconds = 0.0

    def __call__(self, request: DecodeRequest) -> PrefilledSequence:
        """Prefill a request within the context of the half. Raises UsageError."""
        began = time.monotonic()
        try:
            return self.half.call(partial(self.row, request, bounded=True))
        except BaseException:
            if self.prefix is not None:
                self.prefix.forget()
            raise
        finally:
            self.seconds += time.monotonic() - began

    def row(
        self, request: DecodeRequest, half: Half, *, bounded: bool = False
    ) -> PrefilledSequence:
        """Prefill a request with a half. `bounded`: its token limit keeps within the context."""
        inputs, features, options = self.inputs(half, request)
        generate_kwargs = self._transformers.generate_kwargs.of(request.item)
        if bounded:
            items = [request.item]
            generate_kwargs = generate_kwargs.bounded(half, inputs, items, whole=self._whole)
        options["max_new_tokens"] = generate_kwargs.limit
        if self.prefix is not None:
            prefill, item = self.prefix.prefill_from_prefix, request.item
            row = prefill(half, item.media, inputs, features, **options)
        else:
            row = prefill_row(half, inputs, features, **options)
        stopped = partial(generate_kwargs.stopped, self._transformers.processor)
        return replace(row, stopped=stopped) if generate_kwargs.stop else row

    def inputs(
        self, half: Half, request: DecodeRequest
    ) -> tuple[dict[str, Any], Features, dict[str, Any]]:
        """Return the inputs, features and keyword arguments of `generate` for one request."""
        processor, row = self._transformers.processor, request.features
        generate_kwargs = self._transformers.generate_kwargs.of(request.item)
        chosen = generate_kwargs.options(half, processor, [request.item])
        prompts = [request.item.prompt]
        inputs = prompts_for(half, processor, [row], prompts, generate_kwargs.generation)
        features = Features.of([row])
        options = self._transformers.prefill_options.options(half, processor, row)
        return inputs, features, options | chosen
