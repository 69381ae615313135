"""Runs frame chunks through the vision half, or their sounds through the audio half, in one process
for a whole wave.

The stage reads a chunk's frames from the store as an encoder takes them, or gives the reason why it
cannot. It prepares items on several threads, each with a processor of its own. Processors are not
stated to be thread-safe: a fast tokenizer that two threads use at once may raise "Already
borrowed". After out of memory, items are prepared one at a time.

A batch is computed whole where the bytes of a row depend on it. Otherwise its inputs pass the half
in a fixed number of rows (stages/models/encoding/__init__.py).
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
from threading import Semaphore
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch

from artifacts.errors import NotFinite
from artifacts.records.claims import claims_at
from artifacts.records.packs import Record, RecordSet, read_made, record_sets_of
from artifacts.records.store import open_store
from artifacts.records.tensors import pack_tree
from artifacts.schema import HalfName
from stages.memory.meta_device import tensors
from stages.memory.oom_retry import (
    RETRY,
    ItemFault,
    ItemFaults,
    OomRetry,
    blocks,
    catch_oom,
    item_fault,
)
from stages.models.encoding import EncodeItem, EncodingJob
from stages.models.encoding.batch import (
    PassChecks,
    PassRow,
    encode_batches,
    encode_passes,
    undivided,
)
from stages.models.finite import is_finite, not_finite
from stages.models.half_job import HalfJob
from stages.models.halves.boundary import StoredWindows
from stages.models.halves.recorded import PassRecorder
from stages.models.halves.records import FeatureRecord
from stages.models.halves.reloadable import ReloadableHalf
from stages.models.loading import ModelJob, facts
from stages.models.prefetch import PREFETCH_BATCHES, Prefetched, write_behind
from stages.models.processors.blank_clips import Clip
from stages.models.processors.loading import UNPAIRED
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Half, Processor
from stages.process.checks import Verdicts
from stages.process.events import EventReporter
from stages.process.host_memory import cores
from stages.process.requests import Request, Requests


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The reason why one chunk cannot be encoded, while the others can."""

    message: str
    hint: str = "Try another model or other sampling (--fps, --frames); the other files are done"
    kind: str = "refused"

    @classmethod
    def of(cls, error: NotFinite) -> "Refusal":
        return cls(message=error.message, hint=error.hint, kind=error.kind)

    def meta(self) -> dict[str, str]:
        return {"kind": self.kind, "message": self.message, "hint": self.hint}


def read_chunk(
    record_set: RecordSet, item: EncodeItem, prepare: Callable[[Clip], Prepared]
) -> Prepared | Refusal:
    """Read one chunk as encoder input, or return why the processor refuses its frames."""
    return or_refusal(lambda: prepare(read_clip(record_set, item)), "these frames")


def or_refusal(prepare: Callable[[], Prepared], what: str) -> Prepared | Refusal:
    """Return what a processor prepares, or why it refuses it."""
    try:
        return prepare()
    except Exception as error:
        fault = item_fault(error)
        if fault is None:
            raise
        text = fault.message or fault.type
        return Refusal(message=f"the model's processor refuses {what}: {text}")


def feature_record(key: str, row: FeatureRecord, form: str = "") -> Record:
    """Return the record of the features of one chunk or sound. `form`: that in which they are
    stored; empty: as they are."""
    meta, payload = pack_tree(row.to_tree(), form)
    return Record(key=key, meta={"tree": meta, "tokens": row.count.tokens}, payload=payload)


def read_clip(record_set: RecordSet, item: EncodeItem) -> Clip:
    """Read one chunk's frames, with times relative to its start. Raises DamagedRecord if the frames
    are missing."""
    missing = "the frames {} are no longer in the store"
    hint = "Run the same command again: it reads them from the video again"
    record = read_made(record_set, item.frames, missing, hint)
    meta = record.meta
    shape = (len(meta["times"]), meta["height"], meta["width"], 3)
    return Clip(
        # A copy, because processors make tensors of the frames, and torch requires writable memory.
        # While numpy copies, other threads run; while `bytearray` does, they wait.
        frames=np.frombuffer(record.payload, np.uint8).reshape(shape).copy(),
        # A frame that is visible at the start of a chunk may have a time before it.
        times=tuple(max(0.0, float(time) - float(meta["start"])) for time in meta["times"]),
        seconds=float(meta["end"]) - float(meta["start"]),
        kind="image" if item.kind == "image" else "video",
    )


log = logging.getLogger(__name__)

Item = TypeVar("Item")
Made = TypeVar("Made")
Lent = TypeVar("Lent")
"""The kind of processor that the threads use."""
Outcome = tuple[list[Made], str | None]
"""The result in a list, and None; or an empty list, and the allocator's message."""


class Readers(Generic[Item, Made]):
    """Threads that prepare items. A context manager that cancels what was not begun."""

    def __init__(
        self,
        prepare: Callable[[Lent, Item], Made],
        processor: Lent,
        count: int,
        *,
        reads_text: bool,
    ) -> None:
        """`prepare` gets a processor and an item. Without `reads_text` it calls no tokenizer, so
        all threads share one."""
        self._prepare: Callable[[Any, Item], Made] = prepare
        self._permits = Semaphore(count)
        self._count = count
        self._processors: SimpleQueue[Any] = SimpleQueue()
        torch.get_num_threads()  # fixes the number of this thread, which `start` would set
        # The other cores have threads of their own.
        start = partial(torch.set_num_threads, 1) if count > 1 else None
        self._threads = ThreadPoolExecutor(max_workers=count, initializer=start)
        if count > 1:
            self._threads.submit(self._copy, processor, reads_text)
        else:
            self._processors.put(processor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin(self, item: Item) -> "Future[Outcome[Made]]":
        return self._threads.submit(self._in_turn, item)

    def finish(self, item: Item, begun: "Future[Outcome[Made]]") -> Made:
        """Return the prepared item. One that ran out of memory is tried again, alone. Raises what
        `prepare` raised."""
        records, message = begun.result()
        return self.alone(item) if message is not None else records.pop()

    def alone(self, item: Item) -> Made:
        """Prepare an item on this thread while no other one is prepared, and from now on prepare
        them one at a time."""
        while self._count > 1:
            self._permits.acquire()
            self._count -= 1
        with self._permits:
            return self._with_processor(item)

    def _in_turn(self, item: Item) -> Outcome[Made]:
        with self._permits:
            return catch_oom(lambda: self._with_processor(item))

    def _with_processor(self, item: Item) -> Made:
        processor = self._processors.get()
        try:
            return self._prepare(processor, item)
        finally:
            self._processors.put(processor)

    def _copy(self, processor: Lent, reads_text: bool) -> None:
        """Copy the processor for the other threads, before the first use of any."""
        tokenizer = getattr(processor, "tokenizer", None)
        shared = {} if reads_text else {id(tokenizer): tokenizer}
        try:
            for _ in range(self._count - 1):
                self._processors.put(copied := copy.deepcopy(processor, dict(shared)))
                if processor in UNPAIRED:
                    UNPAIRED.add(copied)
        except Exception as error:  # code of the checkpoint may hold anything
            log.warning("the processor cannot be copied for other threads: %s", error)
        finally:
            self._processors.put(processor)


CHUNKS_PER_READER = 16
"""Chunks of a job for each further reading thread with a tokenizer. Copying a tokenizer of 150,000
tokens takes 0.6 s of a core, and 35 to 57 MiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeSpec:
    """What a stage computes with an encoder's half, and how."""

    stage: str
    """Name of the stage."""
    kind: str
    """Kind of its records."""
    part: HalfName = "vision"
    """Half that computes it."""
    inputs: str = "frames"
    """Kind of the records that it reads."""
    read: Callable[[RecordSet, Processor, EncodeItem], Prepared | Refusal]
    """Reads a chunk: frames, processor and item → encoder input, or the reason for a refusal."""
    record: Callable[[str, FeatureRecord], Record]
    """Key and features of a chunk → the stored record."""
    parts: Callable[[Mapping[str, Any]], int] = lambda meta: 1
    """Metadata of the stored frames of an image → how many parts of it are encoded."""
    publish_each: bool = False
    """Whether a client's record is published in a pack of its own, for another process to find."""
    reads_text: bool = True
    """Whether `read` calls the tokenizer."""
    encode: Callable[[Half, Sequence[Sequence[Prepared]]], list[list[FeatureRecord]]] = (
        encode_batches
    )
    """Half and batches → the features of each chunk."""
    divide: Callable[[Prepared], list[Prepared]] = lambda row: [row]
    """A chunk → the inputs that may be encoded apart from each other."""
    unite: Callable[[Prepared, list[FeatureRecord]], FeatureRecord] = lambda row, made: made[0]
    """A chunk and the features of its inputs → the features of the chunk."""


ItemRequest = Request[EncodeItem]
Reading = tuple[ItemRequest, "Future[Outcome[Prepared | Refusal]]"]
ToEncode = tuple[ItemRequest, Prepared | Refusal]
Encoded = tuple[ItemRequest, FeatureRecord | Refusal]
Compute = Callable[[Sequence[Sequence[ToEncode]]], list[list[Encoded]]]
"""The request for a chunk, with what is known of it at that point."""


def encode_all(job: EncodingJob, spec: EncodeSpec, report: EventReporter) -> None:
    """Publish a record, or a refusal, for each chunk of `batches` that has none, or for each that
    the job is sent."""
    encoding = EncodeRun(job, spec, report)
    if encoding.batches or job.requests:
        encoding.run()


class EncodeRun:
    """One job: its record sets and the handling of each batch."""

    def __init__(self, job: EncodingJob, spec: EncodeSpec, report: EventReporter) -> None:
        self._job = job
        self._spec = spec
        self._report = report
        self._store = open_store(job.store)
        shown = open_store(job.frames_store or job.store)
        self._frames = RecordSet(shown, spec.inputs, job.frames_namespace)
        self._records, self._failures = record_sets_of(
            self._store, (spec.kind, job.namespace), ("failures", job.namespace)
        )
        self._windows: StoredWindows | None = None
        self._checks: PassChecks | None = None
        compares = spec.part == "vision" and job.half.device != "cpu"
        if compares or job.in_passes:
            verdicts = Verdicts(self._store, job.half.device)
            self._windows = StoredWindows(verdicts) if compares else None
            self._checks = PassChecks(verdicts, job.half) if job.in_passes else None
        self.batches = [b for b in job.batches if any(m.key not in self._records for m in b)]
        """Batches with missing records; of a job that is sent its work, the last one sent."""
        report.total(sum(m.key not in self._records for b in self.batches for m in b))

    def run(self) -> None:
        """Load the half and encode every batch."""
        job, spec, records = self._job, self._spec, (self._records, self._failures)
        source = ModelJob.of(job.half)
        read = partial(spec.read, self._frames)
        processor, readers = source.processor(), self._reader_count()
        self._readers = Readers(read, processor, readers, reads_text=spec.reads_text)
        half = None if source.route == "joint" else source.load_reloadable(spec.part)
        self._report.note(ready=True, **({} if half is None else facts(half.model)))
        compute = partial(_encoded, half, job.half, spec, self._checks)

        def last() -> object:
            item = self.batches[-1][-1]
            return compute([[(Request(item), self._readers.alone(item))]])

        def spare() -> object:
            return self._readers.alone(self.batches[-1][-1])

        def begin(some: Sequence[Sequence[ItemRequest]]) -> list[list[Reading]]:
            return [[(one, self._readers.begin(one.item)) for one in batch] for batch in some]

        self._read_retry = OomRetry(self._report, spare, ItemFaults(spec.stage, self._note_failure))
        faults = ItemFaults(spec.stage, self._note_failure, self._first(), self._hold)
        oom_retry, block = OomRetry(self._report, last, faults), job.block
        depth = 1 if block else PREFETCH_BATCHES
        taking = (
            nullcontext() if job.for_clients else claims_at(self._store, *records, share=job.share)
        )
        refuse = self._refuse if job.for_clients else None
        sent = None
        if job.requests:
            sent = Requests(job.requests, EncodeItem, self._report, for_clients=job.for_clients)
        with taking as self._claims, self._readers, sent or nullcontext():
            work = self._own() if sent is None else self._sent(sent)
            with (
                Prefetched(work, begin, depth, self._report.idle) as ready,
                write_behind(self._publish, refuse, ready.close) as self._later,
            ):
                for begun in ready:
                    self._encode(begun, oom_retry, compute)
                    del begun
                faults.close()
        if sent is not None:
            sent.close()
        if self._windows is not None and half is not None:
            self._report.note(windows=self._windows.keep(half.model), **PassRecorder.stats())

    def _encode(
        self, begun: Sequence[Sequence[Reading]], oom_retry: OomRetry, compute: Compute
    ) -> None:
        """Encode chunks whose reading has begun. Nothing of them is held after it."""
        if items := self._read(begun):
            for _, outputs in oom_retry.run_block(items, self._job.block, _key, compute):
                self._later(outputs)

    def _first(self) -> int:
        """Return the size of the first batch, which is not known of a job that is sent its work; 0
        if part of this job is already done."""
        if self._job.requests:
            return int(not self._job.for_clients and len(self._records) == 0)
        items = [item for batch in self._job.batches for item in batch]
        if not items or any(item.key in self._records for item in items):
            return 0
        return len(self.batches[0])

    def _note_failure(self, item: ToEncode, fault: ItemFault) -> None:
        """Publish a refusal for a chunk on which the model raised."""
        hint = "Send another image, or use another model" if self._job.for_clients else RETRY
        self._later([(item[0], Refusal(**fault.meta(self._spec.stage, hint)))])

    def _own(self) -> Iterator[Sequence[Sequence[ItemRequest]]]:
        """Yield the batches of the job that this process claims, in blocks."""
        assert self._claims is not None
        to_do = blocks(self.batches, self._job.block, self._image_count)
        for some in self._claims.claimed_batches(to_do, self._missing_keys):
            yield [[*map(Request, batch)] for batch in some]

    def _sent(self, sent: Requests[EncodeItem]) -> Iterator[Sequence[Sequence[ItemRequest]]]:
        """Yield each batch as it arrives, as far as this process is to encode it."""
        begin = self._find_inputs if self._job.for_clients else self._claim
        for batches in sent:
            if not self._job.for_clients:
                self._frames.refresh()
            ready = [left for left in map(begin, batches) if left]
            del batches  # a kept reference would keep its requests alive
            while ready:
                self.batches = [[one.item for one in ready[0]]]
                yield [ready.pop(0)]

    def _hold(self, pair: ToEncode) -> None:
        """Answer a run for an item that raised, and that waits for another to succeed."""
        if self._job.requests and not self._job.for_clients:
            self._report.returned([_key(pair)])

    def _find_inputs(self, batch: list[ItemRequest]) -> list[ItemRequest]:
        """Return the requests of a client whose inputs are there, and refuse the others."""
        for pair in batch:  # each file is a pack
            self._frames.look_up_pack([pair.item.frames])
        hint = "Send the request again: its frames are read again"
        for pair in batch:
            if pair.item.frames not in self._frames:
                missing = f"the {self._spec.inputs} are missing"
                self._report.failure(pair.item.key, "gone", missing, hint)
        return [pair for pair in batch if pair.item.frames in self._frames]

    def _claim(self, batch: list[ItemRequest]) -> list[ItemRequest]:
        """Return the batch; nothing of it if another process has or makes its records."""
        assert self._claims is not None
        if self._claims.take(partial(self._missing_keys, [[reading.item for reading in batch]])):
            return batch
        self._report.returned(reading.item.key for reading in batch)
        return []

    def _reader_count(self) -> int:
        """Return the number of reading threads: no more than cores, because they compute all the
        time, and fewer where a processor would be copied for few chunks."""
        most, chunks = min(self._job.workers, cores()), sum(map(len, self.batches))
        if self._job.requests or not self._spec.reads_text:
            return most
        return min(most, 1 + chunks // CHUNKS_PER_READER)

    def _read(self, some: Sequence[Sequence[Reading]]) -> list[list[ToEncode]]:
        """Return the prepared chunks, leaving out those that alone do not fit into memory. An image
        may have any size."""

        def finish(pairs: Sequence[Reading]) -> Prepared | Refusal:
            ((one, begun),) = pairs
            return self._readers.finish(one.item, begun)

        run_one = self._read_retry.run_batch
        batches = [
            [(pair[0], row) for pair in batch for _, row in run_one([pair], _key, finish)]
            for batch in some
        ]
        return [batch for batch in batches if batch]

    def _missing_keys(self, some: Sequence[Sequence[EncodeItem]]) -> list[str]:
        keys = [item.key for batch in some for item in batch]
        return [key for key in keys if key not in self._records and key not in self._failures]

    def _image_count(self, item: EncodeItem) -> int:
        if item.frames not in self._frames or self._spec.part == "audio":
            return 1
        meta = self._frames.meta(item.frames)
        if item.kind == "image":
            return self._spec.parts(meta)
        return item.shown or len(meta["times"])

    def _publish(self, made: list[list[Encoded]]) -> None:
        rows = {one.item.key: (one.item, row) for batch in made for one, row in batch}
        refused = {k: row.meta() for k, (_, row) in rows.items() if isinstance(row, Refusal)}
        self._failures.publish([Record(key=key, meta=why) for key, why in refused.items()])
        for key, why in refused.items():
            self._report.failure(media=key, **why)
        made_of = {k: row for k, (_, row) in rows.items() if isinstance(row, FeatureRecord)}
        made_now = [self._spec.record(k, row) for k, row in made_of.items()]
        if self._job.for_clients:
            self._answer_clients(rows, made_now)
        elif made_now:
            self._report.answered(*(new := self._records.publish(made_now)))
            if self._job.requests:  # another process was first with the others
                self._report.returned(made_of.keys() - {*new})
        if self._claims is not None:  # clients share no work
            self._claims.done(rows)

    def _refuse(self, made: list[list[Encoded]], error: Exception) -> None:
        """Answer clients whose results cannot be published."""
        self._report.not_stored({one.item.key for batch in made for one, _ in batch}, error)

    def _answer_clients(
        self, rows: Mapping[str, tuple[EncodeItem, object]], made: Sequence[Record]
    ) -> None:
        """Publish the results for the requesting process, and delete their inputs."""
        for some in [[record] for record in made] if self._spec.publish_each else [made]:
            self._records.publish(some)
        self._report.answered(*(record.key for record in made))
        self._records.forget(rows)
        self._failures.drop(rows)
        self._frames.drop(item.frames for item, _ in rows.values())


def _key(pair: ToEncode | Reading) -> str:
    return pair[0].item.key


def _encoded(
    half: ReloadableHalf | None,
    job: HalfJob,
    spec: EncodeSpec,
    checks: PassChecks | None,
    batches: Sequence[Sequence[ToEncode]],
) -> list[list[Encoded]]:
    """Make a record for each chunk that was not refused. For a model without boundary it holds the
    pixels. Without `checks`, each batch passes the half whole. Raises NotFinite if no chunk has
    features of finite numbers; chunks without are refused beside others."""
    rows = [[row for _, row in batch if isinstance(row, Prepared)] for batch in batches]
    if half is None:
        encoded = [[undivided(row) for row in some] for some in rows]
    elif checks is not None:
        pass_rows = [
            (m.item.rows, row) for b in batches for m, row in b if isinstance(row, Prepared)
        ]
        encoded = [half.call(lambda model: _encoded_in_passes(model, spec, checks, pass_rows))]
    else:
        encoded = half.call(lambda model: spec.encode(model, rows))
    records = [record for of_batch in encoded for record in of_batch]
    finite = [half is None or _is_finite(record) for record in records]
    if records and not any(finite):
        raise not_finite(job, spec.part)
    outcomes: Iterator[FeatureRecord | Refusal] = iter(records)
    if not all(finite):
        refusal = Refusal.of(not_finite(job, spec.part))
        pairs = zip(records, finite, strict=True)
        outcomes = iter([record if is_good else refusal for record, is_good in pairs])
    return [
        [(m, row if isinstance(row, Refusal) else next(outcomes)) for m, row in batch]
        for batch in batches
    ]


def _is_finite(row: FeatureRecord) -> bool:
    return all(map(is_finite, tensors(row.features)))


def _encoded_in_passes(
    model: Half, spec: EncodeSpec, checks: PassChecks, chunks: Sequence[tuple[int, Prepared]]
) -> list[FeatureRecord]:
    """Return the features of chunks, given with the rows of their passes."""
    inputs = [[PassRow(prepared=p, rows=rows) for p in spec.divide(row)] for rows, row in chunks]
    encoded = iter(encode_passes(model, [row for some in inputs for row in some], checks))
    return [
        spec.unite(row, list(islice(encoded, len(some))))
        for (_, row), some in zip(chunks, inputs, strict=True)
    ]
