"""Records chunks on which the language half raises, and finds a fallback engine that can caption
them."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from artifacts.errors import StageDied, UsageError
from stages.decode.answers import Answers
from stages.decode.batches import Batch
from stages.decode.protocol import DecodeEngine, DecodeRequest, PromptChecker
from stages.memory.item_faults import ItemFault, ItemFaults, item_fault
from stages.memory.oom_retry import try_items
from stages.process.events import TOO_LONG
from stages.process.report import EventReporter

STAGE = "decode"


class DecodeFaults:
    """Stores the failures of one job: chunks on which the model raises. A failure is stored under
    the caption's key in place of the caption, so another model still tries the chunk."""

    def __init__(self, batches: Sequence[Batch], answers: Answers, report: EventReporter) -> None:
        """Take the batches of the job, and their answers."""
        self._answers = answers
        self._report = report
        self.done: Callable[[list[str]], object] = list
        """Callback with keys that no other process needs to wait for any more."""
        missing = [left for batch in batches if (left := answers.missing(batch))]
        is_new = sum(map(len, missing)) == sum(map(len, batches))
        self.items = ItemFaults(STAGE, self._fail, len(missing[0]) if missing and is_new else 0)

    def _fail(self, request: DecodeRequest, fault: ItemFault) -> None:
        self._store_failure(request, fault.meta(STAGE))

    def refuse(self, request: DecodeRequest, fault: UsageError) -> None:
        """Store a failure for a chunk whose prompt the model cannot take."""
        self._store_failure(
            request, {"kind": TOO_LONG, "message": fault.message, "hint": fault.hint}
        )

    def within_context(
        self, engine: DecodeEngine, samples: Iterable[DecodeRequest]
    ) -> Iterator[DecodeRequest]:
        """Yield the requests whose prompts fit the model. The others fail before prefill, if the
        engine can check that."""
        for request in samples:
            fault = engine.refusal(request) if isinstance(engine, PromptChecker) else None
            if fault is None:
                yield request
            else:
                self.refuse(request, fault)

    def _store_failure(self, request: DecodeRequest, meta: dict[str, str]) -> None:
        self._answers.fail(request.item, meta)
        self._report.failure(request.item.key, **meta)
        self.done([self._answers.key(request.item)])


def resolve_engine(
    engine: DecodeEngine, samples: Iterable[DecodeRequest], faults: ItemFaults
) -> tuple[str | None, set[str]]:
    """Return the name of the engine that will run, found with the first request on which the model
    does not raise, and the keys of the requests before it. The name is None if the model raises on
    all. Raises UsageError if no engine can run, and StageDied if an engine fails on a request that
    the model itself accepts."""
    raised: set[str] = set()
    for request in samples:
        try:
            return engine.resolve_engine(request), raised
        except Exception as error:
            broken = item_fault(error)
            if broken is None:
                raise
            traceback.print_exc()
        _, message, fault = try_items(partial(engine.generate_batch, [request]))
        if message is not None:
            raise MemoryError(message)
        if fault is None:
            raise StageDied(f"the {STAGE} stage failed: {broken}", hint="Choose another --engine")
        raised.add(request.item.key)
        faults.add(request, fault)
    return None, raised


def samples_of(batches: Sequence[Batch], answers: Answers) -> Iterator[Batch]:
    """Yield each item without a caption or failure as a batch of one: the last item first, because
    its prompt is short, then the others in order."""
    items = [item for batch in batches for item in batch if answers.missing([item])]
    for item in [*items[-1:], *items[:-1]]:
        yield [item]


def without(batches: Iterable[Batch], keys: set[str]) -> list[Batch]:
    """Return the batches without the items of these keys."""
    left = ([item for item in batch if item.key not in keys] for batch in batches)
    return [batch for batch in left if batch]


def refuse_request(report: EventReporter) -> Callable[[Any, ItemFault], None]:
    """Return a callback that reports a failure for a request on which the model raises."""

    def fail(request: DecodeRequest, fault: ItemFault) -> None:
        hint = "Send another image or prompt, or use another model"
        report.failure(request.item.key, **fault.meta(STAGE, hint))

    return fail
