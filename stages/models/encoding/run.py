"""Runs frame chunks through the vision half, in one process for a whole wave.

A batch is always computed whole, because a row's bytes depend on its batch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts.claims import UnsharedWork, turns_at
from artifacts.packs import Record, RecordSet
from artifacts.record_union import record_sets_of
from artifacts.store import open_store
from stages.memory.item_faults import RETRY, ItemFault, ItemFaults
from stages.memory.oom_retry import OomRetry, blocks
from stages.models.encoding.batch import encode_batches, overflowed, undivided
from stages.models.encoding.chunks import Refusal
from stages.models.encoding.job import EncodeItem, EncodingJob
from stages.models.halves.pieces import ReloadableHalf
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob, facts
from stages.models.prefetch import PREFETCH_BATCHES, prefetched, write_behind
from stages.models.processors.side_inputs import Prepared
from stages.process.events import Published
from stages.process.job import items_of
from stages.process.live import read_requests
from stages.process.report import EventReporter


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeSpec:
    """What a stage computes with the vision half, and how."""

    stage: str
    """Name of the stage."""
    kind: str
    """The kind of its records."""
    read: Callable[[RecordSet, Any, EncodeItem], Prepared | Refusal]
    """Frames, processor and chunk → the chunk as the encoder takes it, or why it does not."""
    record: Callable[[str, FeatureRecord], Record]
    """Key and what the half made of a chunk → what is stored."""
    parts: Callable[[Mapping[str, Any]], int] = lambda meta: 1
    """Description of the stored frames of a picture → how many parts of it are looked at."""
    publish_each: bool = False
    """Whether a live job publishes each record by itself, for another process to look for."""
    encode: Callable[[Any, Sequence[Sequence[Prepared]]], list[list[FeatureRecord]]] = (
        encode_batches
    )
    """Half and batches → what it makes of each chunk."""


ToEncode = tuple[EncodeItem, Prepared | Refusal]
Encoded = tuple[EncodeItem, FeatureRecord | Refusal]
"""A chunk, as the job has it, with what is known of it by then."""


def encode_all(job: EncodingJob, spec: EncodeSpec, report: EventReporter) -> None:
    """Publish a record for each chunk of `batches` that has none, or why it cannot have one; of a
    live job, for each that is told."""
    encoding = EncodeRun(job, spec, report)
    if encoding.batches or job.live:
        encoding.run()


class EncodeRun:
    """One job: its record sets, and what is done with a batch."""

    def __init__(self, job: EncodingJob, spec: EncodeSpec, report: EventReporter) -> None:
        self._job = job
        self._spec = spec
        self._report = report
        self._store = open_store(job.store)
        shown = open_store(job.frames_store or job.store)
        self._frames = RecordSet(shown, "frames", job.frames_namespace)
        self._records, self._failures = record_sets_of(
            self._store, (spec.kind, job.namespace), ("failures", job.namespace)
        )
        self.batches: Sequence[list[EncodeItem]] = deque(maxlen=1)
        """Batches of which anything is missing; of those that are told, the last one alone."""
        if not job.live:
            self.batches = [b for b in job.batches if any(m.key not in self._records for m in b)]
        report.total(sum(m.key not in self._records for b in self.batches for m in b))

    def run(self) -> None:
        """Load the half and take every batch through it."""
        job, records = self._job, (self._records, self._failures)
        source = ModelJob.of(job.half)
        self._processor = source.processor()
        half = None if source.route == "joint" else source.hold("vision")
        self._report.note(ready=True, **({} if half is None else facts(half.model)))
        compute = partial(_encoded, half, self._spec)

        def last() -> object:
            return compute([[(m, self._prepared([m])) for m in self.batches[-1][-1:]]])

        def spare() -> object:
            return self._prepared(self.batches[-1][-1:])

        self._read_retry = OomRetry(
            self._report, spare, ItemFaults(self._spec.stage, self._note_failure)
        )
        faults = ItemFaults(self._spec.stage, self._note_failure, self._first())
        oom_retry, block = OomRetry(self._report, last, faults), job.block
        depth = 1 if block else PREFETCH_BATCHES
        taking = nullcontext(UnsharedWork()) if job.live else turns_at(self._store, *records)
        to_do = self._requests() if job.live else blocks(self.batches, block, self._image_count)
        with taking as self._turns, write_behind(self._publish) as later:
            self._later = later
            mine = self._turns.mine(to_do, self._missing_keys)
            for _, items in prefetched(mine, self._read, depth):
                if items:
                    for _, made in oom_retry.run_block(items, block, _key, compute):
                        later(made)
            faults.close()

    def _first(self) -> int:
        """Return the size of the first batch; 0 where the half made anything of this job."""
        items = [item for batch in self._job.batches for item in batch]
        if self._job.live or any(item.key in self._records for item in items):
            return 0
        return len(self.batches[0])

    def _note_failure(self, item: ToEncode, fault: ItemFault) -> None:
        """Note that the model raises on a chunk."""
        hint = "Send another picture, or ask another model" if self._job.live else RETRY
        self._later([(item[0], Refusal(**fault.meta(self._spec.stage, hint)))])

    def _requests(self) -> Iterator[Sequence[list[EncodeItem]]]:
        """Yield each batch that is told, as it comes."""
        for line in read_requests(self._job.live):
            batch = items_of(EncodeItem, line)
            for item in batch:
                self._frames.find([item.frames])
                if item.frames not in self._frames:
                    hint = "Ask again: they are read anew"
                    self._report.failure(item.key, "gone", "the frames are gone", hint)
            there = [item for item in batch if item.frames in self._frames]
            if there:
                self.batches = [there]
                yield [there]

    def _prepared(self, items: Sequence[EncodeItem]) -> Prepared | Refusal:
        return self._spec.read(self._frames, self._processor, items[0])

    def _read(self, some: Sequence[Sequence[EncodeItem]]) -> list[list[ToEncode]]:
        """Read the chunks, without those for which alone there is not the memory. A picture may be
        of any size."""
        through = self._read_retry.run_batch
        found = [
            [(m, row) for m in batch for _, row in through([m], _name, self._prepared)]
            for batch in some
        ]
        return [batch for batch in found if batch]

    def _missing_keys(self, some: Sequence[Sequence[EncodeItem]]) -> list[str]:
        keys = [item.key for batch in some for item in batch]
        return [key for key in keys if key not in self._records and key not in self._failures]

    def _image_count(self, item: EncodeItem) -> int:
        if item.frames not in self._frames:
            return 1
        meta = self._frames.meta(item.frames)
        if item.kind == "image":
            return self._spec.parts(meta)
        return item.shown or len(meta["times"])

    def _publish(self, made: list[list[Encoded]]) -> None:
        rows = {item.key: (item, row) for batch in made for item, row in batch}
        refused = {k: row.meta() for k, (_, row) in rows.items() if isinstance(row, Refusal)}
        self._failures.publish([Record(key=key, meta=why) for key, why in refused.items()])
        for key, why in refused.items():
            self._report.failure(media=key, **why)
        made_of = {k: row for k, (_, row) in rows.items() if isinstance(row, FeatureRecord)}
        made_now = [self._spec.record(k, row) for k, row in made_of.items()]
        if self._job.live:
            self._publish_live(rows, made_now)
        else:
            for key in self._records.publish(made_now):
                self._report.item(key)
        self._turns.done(rows)

    def _publish_live(
        self, rows: Mapping[str, tuple[EncodeItem, object]], made: Sequence[Record]
    ) -> None:
        """Leave what was made to who told of it, and keep nothing that it was made of."""
        for some in [[each] for each in made] if self._spec.publish_each else [made]:
            self._records.publish(some)
        self._report.send(Published(keys=tuple(each.key for each in made)))
        self._records.leave(rows)
        self._failures.drop(rows)
        self._frames.drop(item.frames for item, _ in rows.values())


def _key(pair: ToEncode) -> str:
    return _name(pair[0])


def _name(item: EncodeItem) -> str:
    return item.key


def _encoded(
    half: ReloadableHalf | None, spec: EncodeSpec, batches: Sequence[Sequence[ToEncode]]
) -> list[list[Encoded]]:
    """Make a record for each chunk that was not refused. Of a model that cannot be cut, it is of
    the pixels."""
    rows = [[row for _, row in batch if isinstance(row, Prepared)] for batch in batches]
    if half is None:
        made = [[undivided(row) for row in some] for some in rows]
    else:
        made = half.use(lambda model: spec.encode(model, rows))
    found = iter([record for some in made for record in some])
    return [
        [(m, row if isinstance(row, Refusal) else _in_range(next(found))) for m, row in batch]
        for batch in batches
    ]


def _in_range(row: FeatureRecord) -> FeatureRecord | Refusal:
    """Return the features, or that they are too large for what they were computed in."""
    if not overflowed(row):
        return row
    return Refusal(
        message="the model sees numbers that float16 does not hold",
        hint="Give --vision-precision fp32, or bf16 where the GPU computes in it",
        kind="overflow",
    )
