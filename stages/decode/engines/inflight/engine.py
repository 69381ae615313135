"""The `inflight` engine: continuous batching in a fixed pool of KV-cache slots.

Each prompt is prefilled alone and then decoded in a slot until its caption ends. No request waits
for a batch, and a caption's bytes depend only on its own sequence. Where the check before use finds
otherwise, or the half cannot be run in slots, the `transformers` engine takes over if the job
allows it.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from artifacts.errors import UsageError
from stages.decode.engines import AUTO, engines_for
from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.decode.engines.inflight.compiled import CompiledStep
from stages.decode.engines.inflight.engine_check import EngineCheck, choose_layout, reference_of
from stages.decode.engines.inflight.prefill import PrefilledSequence, SharedPrefix, prefill_row
from stages.decode.engines.inflight.scheduler import (
    InflightScheduler,
    RequestPrefetcher,
    SequenceState,
    coming,
)
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.job import DecodeJob
from stages.decode.prompts import prompts_for
from stages.decode.protocol import CaptionOutput, DecodeRequest, Listen
from stages.memory.oom_retry import OomRetry, release_memory, try_items
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.features import Features
from stages.models.halves.records import merge_blank, merge_rows
from stages.process.exit_diagnosis import out_of_memory

PARTIAL_INTERVAL_SECONDS = 0.1
"""Least time between two times that a row's words are told while it is said."""
TOGETHER_SECONDS = 1.0
"""How long captions that ended wait for others to be published with: each time is one file."""
LONGER = " Then tell what else there is to be seen, and where."
"""What is put behind a prompt to have one of another length."""


class InflightEngine:
    """A language half that generates captions in slots."""

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        self._plain = TransformersEngine(job)
        self._result = EngineCheck(reason="it was not tried")
        self._engine = engines_for(job.engine)[0]
        self._step = CompiledStep(job.half.device) if self._engine.compiled else None
        self._prefix = SharedPrefix() if self._engine.by_chunk else None
        """What prompts of one chunk have in common; None: each is read by itself."""
        self._apart = ""
        """Why prompts are read by themselves that could have had that in common."""
        self._loop: InflightScheduler | None = None
        self._listen: Listen | None = None

    def facts(self) -> dict[str, Any]:
        return self._plain.facts()

    def settle(self, asked: DecodeRequest) -> str:
        """Return the name of the engine that speaks, found out by a chunk. Raises UsageError where
        it has to be this one and cannot."""
        self._result = self._judged(asked)
        release_memory()  # what was tried is not what will be held
        if not self._result.reason:
            return self._engine.name
        if len(engines_for(self._job.engine)) == 1:
            raise UsageError(
                f"engine {self._engine.name} cannot run this model: {self._result.reason}",
                hint=f"Use --engine {AUTO} or {self._plain.name}",
            )
        return self._plain.name

    def refusal(self, asked: DecodeRequest) -> UsageError | None:
        return self._plain.refusal(asked)

    def findings(self) -> dict[str, Any]:
        found = self._plain.findings()
        if self._result.reason:
            return found | {"engine": self._plain.name, "engine_reason": self._result.reason}
        if self._loop is not None:
            counted = self._loop.counted
            found |= {"slots": self._loop.slots, "row_steps": counted.steps}
            found |= {"aligned": True} if self._result.manner.aligned else {}
            found |= {"row_steps_used": counted.used}
        if self._engine.by_chunk:
            found |= {"shared_prefix": self._prefix is not None}
        if self._apart:
            found |= {"shared_prefix_reason": self._apart}
        return found | {"engine": self._engine.name}

    def run(
        self, batches: Iterable[Sequence[DecodeRequest]], shrinking: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        """Yield captions as they end, those of a moment together."""
        if self._result.reason:
            yield from self._plain.run(batches, shrinking)
            return
        with coming(batches) as rows:
            yield from self._publish_groups(rows, shrinking)

    def overhear(self, listen: Listen) -> None:
        self._listen = listen

    def say(self, asked: Sequence[DecodeRequest]) -> Sequence[CaptionOutput]:
        """Return what is said of each, one after the other."""
        if self._result.reason:
            return self._plain.say(asked)
        assert self._loop is not None
        return [self._said(self._loop.alone(one)) for one in asked]

    def _publish_groups(
        self, rows: RequestPrefetcher, shrinking: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        self._loop = self._new_loop(shrinking)
        ended: list[SequenceState] = []
        since, moment = time.monotonic(), 0.0 if self._job.live else TOGETHER_SECONDS
        for flight in self._loop.run(rows):
            if flight is not None:
                ended.append(flight)
            # Who waits for another process must not keep from it what it may wait for, too.
            if ended and (flight is None or time.monotonic() - since >= moment):
                yield self._words(ended, shrinking)
                ended, since = [], time.monotonic()
        if ended:
            yield self._words(ended, shrinking)

    def _words(
        self, ended: list[SequenceState], shrinking: OomRetry
    ) -> tuple[list[DecodeRequest], list[CaptionOutput]]:
        """Return the rows that ended and their words, without those of which none can be made."""
        pairs = []
        for flight in ended:
            said, words, fault = shrinking.attempt(partial(self._said, flight))
            if words is not None:
                raise MemoryError(words)
            if fault is not None:
                shrinking.fail(flight.asked, fault)
            pairs += [(flight.asked, one) for one in said]
        return [asked for asked, _ in pairs], [one for _, one in pairs]

    def _new_loop(self, shrinking: OomRetry) -> InflightScheduler:
        return InflightScheduler(
            self._read,
            shrinking,
            self._result.manner,
            slots=slot_count(self._job),
            late=int(self._job.half.device != "cpu"),
            overhear=self._overhear if self._listen else None,
        )

    def _overhear(self, flight: SequenceState) -> None:
        """Tell what a row has said so far, now and then."""
        now = time.monotonic()
        if self._listen is None or now - flight.told < PARTIAL_INTERVAL_SECONDS:
            return
        flight.told = now
        # Not told of a row that raises here, which is found out at its end.
        for text, *_ in try_items(partial(self._text, flight))[0]:
            self._listen(flight.asked, text, len(flight.said))

    def _read(self, asked: DecodeRequest) -> PrefilledSequence:
        try:
            return self._plain.held.use(partial(self._row, asked, bounded=True))
        except BaseException:
            if self._prefix is not None:
                self._prefix.forget()
            raise

    def _row(self, asked: DecodeRequest, half: Any, *, bounded: bool = False) -> PrefilledSequence:
        inputs, features, options = self._given(half, asked)
        choosing = self._plain.choosing.of(asked.member)
        if bounded:
            live = bool(self._job.live)
            choosing = self._plain.bounded(half, inputs, choosing, [asked.member], whole=live)
        options["max_new_tokens"] = choosing.limit
        if self._prefix is not None:
            row = self._prefix.read(half, asked.member.features, inputs, features, **options)
        else:
            row = prefill_row(half, inputs, features, **options)
            row = row if self._step is None else replace(row, step=self._step.of(row.model))
        stopped = partial(choosing.stopped, self._plain.processor)
        return replace(row, stopped=stopped) if choosing.stop else row

    def _given(
        self, half: Any, asked: DecodeRequest
    ) -> tuple[dict[str, Any], Features, dict[str, Any]]:
        """Return what `generate` is given of one row: inputs, features, options."""
        processor, row = self._plain.processor, asked.row
        choosing = self._plain.choosing.of(asked.member)
        chosen = choosing.options(half, processor, [asked.member])
        prompts = [asked.member.prompt]
        inputs = prompts_for(half, processor, [row], prompts, choosing.generation)
        features = Features(merge_rows([row]), row.needs, merge_blank([row]))
        return inputs, features, {**self._plain.reading.options(half, processor, row), **chosen}

    def _judged(self, asked: DecodeRequest) -> EngineCheck:
        if self._plain.choosing.generation.beams > 1:
            return EngineCheck(reason="its captions are searched by beams")
        if self._job.kv:
            return EngineCheck(reason="its cache is kept elsewhere or in few bits")
        precision = self._job.half.precision
        if precision in self._engine.refused_precisions:  # a trial may lack outliers
            return EngineCheck(reason="products in 8 bit look at all rows")
        plain = asked.member._replace(settings="")
        asked = asked._replace(member=plain, work=None)
        longer = plain._replace(prompt=plain.prompt + LONGER)
        pair = (asked, asked._replace(member=longer))
        if self._prefix is not None:
            try:
                result = self._plain.held.use(partial(self._tried, *pair))
                if not result.reason:
                    return result
                self._apart = result.reason
            except Exception as error:  # a family may refuse in any way what is not its own
                if out_of_memory(error) or isinstance(error, NeedsWeights):
                    raise
                self._apart = f"{type(error).__name__}: {error}"[:200]
            self._prefix = None
            release_memory()
        try:
            return self._plain.held.use(partial(self._tried, *pair))
        except UnsupportedCacheError as error:
            return EngineCheck(reason=str(error))

    def _tried(self, asked: DecodeRequest, longer: DecodeRequest, half: Any) -> EngineCheck:
        inputs, features, options = self._given(half, asked)
        reference = reference_of(half, inputs, features, **options)
        row, other = (self._row(each, half) for each in (asked, longer))
        insisted = len(engines_for(self._job.engine)) == 1
        found = choose_layout(slot_count(self._job), row, other, reference, insisted=insisted)
        if found.starved and insisted:
            raise MemoryError(found.reason)
        return found

    def _said(self, flight: SequenceState) -> CaptionOutput:
        self._plain.held.confirm()
        assert flight.ended is not None
        if flight.fault is not None:
            return CaptionOutput("", 0, flight.ended, fault=flight.fault)
        text, shortened = self._text(flight)
        stopped = flight.stopped is not None and flight.stopped(flight.said)
        tokens, read = len(flight.said), flight.prompt_tokens
        return CaptionOutput(text, tokens, flight.ended, shortened, read, stopped)

    def _text(self, flight: SequenceState) -> tuple[str, bool]:
        choosing = self._plain.choosing.of(flight.asked.member)
        return next(iter(choosing.texts_of(self._plain.processor, [flight.said])))


def slot_count(job: DecodeJob) -> int:
    """Return how many slots there are room for: as many as a batch has rows."""
    return job.slots or max((len(batch) for batch in job.batches), default=1)
