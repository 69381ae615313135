"""The decode stage: turns feature records and prompts into captions, in one process for a whole
wave.

Where a caption's bytes depend on its batch, the engine always gets the whole batch, because some of
its rows may have been captioned before.

The stage records chunks on which the language half raises, and finds a fallback engine that can
caption them.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pkgutil import resolve_name
from typing import Any

from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, NotFinite, PenstockError, StageDied, UsageError
from artifacts.records.claims import WorkClaims, claims_at
from artifacts.records.packs import (
    QUARANTINE,
    DamagedRecord,
    Record,
    RecordSet,
    RecordUnion,
    quarantine,
    read_header,
    record_sets_of,
)
from artifacts.records.store import Store, open_store
from artifacts.records.tensors import RecordGone
from stages.decode.engines import EngineSpec, engine_of, engines_for
from stages.decode.generation import FALLBACK, OWN, DecodeItem, DecodeJob
from stages.decode.json_schema import is_cut
from stages.decode.prompts import ContextExceeded, is_repetitive
from stages.decode.protocol import (
    Batch,
    CaptionOutput,
    DecodeEngine,
    DecodeRequest,
    by_chunk,
    longest_first,
    read_features,
    rebatch,
    with_heard,
)
from stages.memory.oom_retry import ItemFault, ItemFaults, OomRetry, item_fault, try_items
from stages.models.loading import warm as warm_model
from stages.models.prefetch import Prefetched, write_behind
from stages.models.processors.side_inputs import side_by_side
from stages.process.device import device_model
from stages.process.events import CUT, TOO_LONG, UNSUPPORTED, CaptionProgress, EventReporter
from stages.process.job import JobFields, parse_job
from stages.process.requests import Request, Requests


class EngineAnswers:
    """The answers of one job. `records` holds, for each engine that may make them, its captions and
    its failures. An item has a key for each of these engines, and an answer by any of them
    counts."""

    def __init__(self, records: Mapping[str, RecordUnion]) -> None:
        self._records = records
        self.made_by = OWN
        """The engine that makes the new ones."""

    @property
    def record_sets(self) -> list[RecordSet]:
        """Return all record sets, the captions of the engine that runs first."""
        first = self._records[self.made_by]
        others = (union for union in self._records.values() if union is not first)
        return [record_set for union in (first, *others) for record_set in union.record_sets]

    def key(self, item: DecodeItem) -> str:
        """Return the key of the answer that is made."""
        return item.keys[self.made_by]

    def missing(self, batch: Sequence[DecodeItem]) -> list[str]:
        """Return the keys, as of `key`, of items without a caption or a failure of any engine."""
        return [self.key(item) for item in batch if not self._has(item)]

    def publish(self, captions: Sequence[Record]) -> list[str]:
        return self._records[self.made_by].publish(captions)

    def fail(self, item: DecodeItem, meta: dict[str, str]) -> None:
        """Store that no engine can answer an item."""
        for engine, key in item.keys.items():
            if engine in self._records:
                _, failures = self._records[engine].record_sets
                failures.publish([Record(key=key, meta=meta)])

    def _has(self, item: DecodeItem) -> bool:
        return any(key in self._records.get(engine, ()) for engine, key in item.keys.items())


def open_records(job: DecodeJob, store: Store) -> tuple[RecordSet, RecordUnion, EngineAnswers]:
    """Return the features, those of sound, and the answers of a job. All are looked up together."""
    namespaces = {OWN: job.namespace, FALLBACK: job.fallback_namespace}
    engines = [engine for engine, namespace in namespaces.items() if namespace]
    places = [(kind, namespaces[e]) for e in engines for kind in ("captions", "failures")]
    heard = [("heard", job.heard_namespace)] if job.heard_namespace else []
    features, *rest = record_sets_of(store, ("features", job.features_namespace), *heard, *places)
    heard_sets = [rest.pop(0) for _ in heard]
    pairs = (rest[at : at + 2] for at in range(0, len(rest), 2))
    answers = EngineAnswers(dict(zip(engines, map(RecordUnion, pairs), strict=True)))
    return features, RecordUnion(heard_sets), answers


STAGE = "decode"


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


CLAIMS_PER_SHARE = 16
"""Least number of pieces in which a process on one of several equal devices claims its share."""
CHECK_LETTERS = 500
"""Maximum number of characters of the prompt in the check before use."""


def start_engine(job: DecodeJob, report: EventReporter) -> DecodeEngine:
    """Load the first engine of a job's choice."""
    start: type[DecodeEngine] = resolve_name(engines_for(job.engine)[0].entry)
    engine = start(job)
    report.note(ready=True, **engine.load_info())
    return engine


class ClientRun:
    """Captions the requests of clients. Their faults are reported, and not stored."""

    def __init__(self, job: DecodeJob, report: EventReporter) -> None:
        self._report = report
        self._job = job
        store = open_store(job.store)
        places = [("features", n) for n in (job.features_namespace, *job.other_features)]
        self._features = RecordUnion(record_sets_of(store, *places))
        heard = [("heard", job.heard_namespace)] if job.heard_namespace else []
        self._heard = RecordUnion(record_sets_of(store, *heard))
        namespaces = {OWN: job.namespace, FALLBACK: job.fallback_namespace}
        self._captions, self._unheard = (
            {maker: RecordSet(store, "captions", n) for maker, n in of.items() if n}
            for of in (namespaces, {**namespaces, **job.unheard_namespaces})
        )

    def run(self) -> None:
        """Answer every request. Raises PenstockError."""
        engine = start_engine(self._job, self._report)
        sent = Requests(self._job.requests, DecodeItem, self._report, for_clients=True)
        with sent:
            self._run(engine, sent)
        sent.close()

    def _run(self, engine: DecodeEngine, sent: Requests[DecodeItem]) -> None:
        report, faults = self._report, ItemFaults(STAGE, self._fail)
        name, first = self._resolve(engine, sent, faults)
        if name is None:
            return
        spec = engine_of(name)
        report.note(engine=spec.name)
        origin = origin_of(spec, engine, self._job)
        engine.set_on_partial(self._send_partial)
        sample = [first[0][0]._replace(work=None)]
        oom_retry = OomRetry(report, lambda: engine.generate_batch(sample), faults)
        with Prefetched(sent, self._read, idle=report.idle) as later:
            for some, outputs in engine.run(_ready(first, later), oom_retry):
                for at in range(len(some)):
                    self._answer(some[at], outputs[at], spec, origin)
                del some, outputs  # a kept reference would keep its requests alive

    def _resolve(
        self, engine: DecodeEngine, sent: Requests[DecodeItem], faults: ItemFaults
    ) -> tuple[str | None, list[list[DecodeRequest]]]:
        """Return the engine that runs, None at the end, and the first batch that it can caption."""
        for batches in sent:
            requests = self._read(batches)
            del batches
            name, raised = resolve_engine(engine, map(_shorten_prompt, requests), faults)
            if name is not None:
                return name, [[request for request in requests if request.item.key not in raised]]
        return None, []

    def _read(self, batches: list[list[Request[DecodeItem]]]) -> list[DecodeRequest]:
        """Return requests with their features. A failure is reported for one whose features are
        gone or damaged."""
        return [read for batch in batches for request in batch for read in self._read_one(request)]

    def _read_one(self, work: Request[DecodeItem]) -> Iterator[DecodeRequest]:
        item = work.item
        heard = [(self._heard, item.heard)] if item.heard else []
        places = [*((self._features, key) for key in (item.features, *item.pictures)), *heard]
        try:
            for records, key in places:
                _find(records, key)
            seen = (item.features, *item.pictures)
            row = side_by_side([read_features(self._features, key) for key in seen])
            row = with_heard(row, self._heard, item.heard)
            for records, key in places:
                records.forget([key])
            yield DecodeRequest(item, row, work)
        except UsageError as error:
            self._report.failure(item.key, UNSUPPORTED, error.message, error.hint)
        except (PenstockError, RecordGone) as error:
            hint = "Send the request again: its media is encoded again"
            self._report.failure(item.key, "gone", getattr(error, "message", str(error)), hint)

    def _answer(
        self,
        request: DecodeRequest,
        output: CaptionOutput,
        spec: EngineSpec,
        origin: dict[str, Json],
    ) -> None:
        """Publish a caption and send it, or send why there is none."""
        if request.is_withdrawn:  # its caption may be incomplete
            return
        if output.fault is not None:
            _report_fault(self._report, request, output.fault)
            return
        is_other = spec is not engines_for(self._job.engine)[0] and self._job.fallback_namespace
        maker = FALLBACK if is_other else OWN
        more = {"prompt_tokens": output.prompt_tokens, "stopped": output.stopped}
        record = Record(key=request.item.keys[maker], meta=output.meta | more | origin)
        records = (self._captions if request.item.heard else self._unheard)[maker]
        try:
            records.publish([record])
        except (EnvironmentFault, OSError) as error:
            self._report.not_stored([request.item.key], error)
            return
        records.forget([record.key])
        self._report.send(_ended(request, output))

    def _send_partial(self, request: DecodeRequest, text: str, tokens: int) -> None:
        self._report.send(CaptionProgress(key=request.item.key, caption=text, tokens=tokens))

    def _fail(self, request: DecodeRequest, fault: ItemFault) -> None:
        hint = "Send another image or prompt, or use another model"
        self._report.failure(request.item.key, **fault.meta(STAGE, hint))


def _ready(
    first: list[list[DecodeRequest]], later: Iterator[list[DecodeRequest]]
) -> Iterator[list[DecodeRequest]]:
    """Yield the first batch and those that follow, and keep none."""
    while first:
        yield first.pop()
    yield from filter(None, later)


def _report_fault(
    report: EventReporter, request: DecodeRequest, fault: UsageError | NotFinite
) -> None:
    kind = TOO_LONG if isinstance(fault, ContextExceeded) else UNSUPPORTED
    kind = fault.kind if isinstance(fault, NotFinite) else kind
    report.failure(request.item.key, kind, fault.message, fault.hint)


def _ended(request: DecodeRequest, output: CaptionOutput) -> CaptionProgress:
    return CaptionProgress(
        key=request.item.key,
        caption=output.caption,
        tokens=output.tokens,
        ended=output.finish_reason,
        prompt_tokens=output.prompt_tokens,
        stopped=output.stopped,
        first=output.fields.get("first", {}),
    )


def origin_of(spec: EngineSpec, engine: DecodeEngine, job: DecodeJob) -> dict[str, Json]:
    """Return what each caption's record says about its computation: the engine, and on a GPU the
    rows of a step and the card, because generations of cards may round differently."""
    card = device_model(job.half.device)
    return {
        **spec.meta,
        **engine.caption_fields(),
        **({"card": card} if card else {}),
        **({"made_by": job.made_by} if job.made_by else {}),
    }


def _shorten_prompt(request: DecodeRequest) -> DecodeRequest:
    """Return the request with a shortened prompt, so that the first request's prompt does not
    decide how long the check takes."""
    item = request.item._replace(prompt=request.item.prompt[:CHECK_LETTERS])
    return request._replace(item=item, work=None)


def _find(records: RecordUnion, key: str) -> None:
    """Look for a record that another process may just have published."""
    if key not in records:
        records.look_up_pack([key])
    if key not in records:
        records.refresh()
    if key not in records:  # dropped here, while other records of its pack were kept
        records.forget(records.keys())
        records.refresh()


def warm(job_fields: JobFields) -> None:
    """Import what the engine and its model need, before the stage's memory is measured."""
    job = parse_job(DecodeJob, {**job_fields, "batches": []})  # without parsing 100,000 items
    for spec in engines_for(job.engine):
        resolve_name(spec.entry)
    if job.generation.schema or job.for_clients:  # any request may have a schema
        resolve_name("stages.decode.constraint")
    warm_model(job_fields)


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Publish a caption for each item of `batches`, or of those that the job is sent, that has
    neither a caption nor a failure."""
    job = parse_job(DecodeJob, job_fields)
    kind = ClientRun if job.for_clients else BatchRun
    kind(job, report).run()


class BatchRun:
    """Captions the batches of one job.

    How it works:

    1. The job's first engine is loaded, unless every item has an answer.
    2. It names the engine that runs, after a check with the first item that it can caption. That
       decides the keys of the captions, and the batches.
    3. The batches are read, captioned and stored at the same time. Those that another process has
       claimed come last.
    4. Captions that repeat themselves are made once more, if that is wanted.
    5. A job that is sent its work has no batches: they arrive while their features are made. If
       another engine than its first is to run, or if the model raises on all items, it ends without
       a record.
    """

    def __init__(self, job: DecodeJob, report: EventReporter) -> None:
        self._job = job
        self._report = report
        self._store = open_store(job.store)
        self._features, self._heard, self._answers = open_records(job, self._store)
        missing = [self._answers.missing(batch) for batch in job.batches]
        self._batches = [batch for batch, keys in zip(job.batches, missing, strict=True) if keys]
        is_new = sum(map(len, missing)) == sum(map(len, job.batches))
        first = len(self._batches[0]) if self._batches and is_new else 0
        # Nothing is known of a job that is sent its work: items which raise wait for a success.
        first = 2 if job.requests else first
        self._faults = ItemFaults(STAGE, self._fail, first, self._hold)
        self._done: Callable[[list[str]], object] = list
        """Callback with keys that no other process needs to wait for any more."""
        self._carried: dict[str, Request[DecodeItem]] = {}
        """Requests of the last message that were not read yet, by key."""
        self._missing: set[str] = set()
        """Keys of the captions that are to be made, once the engine is known."""

    def run(self) -> None:
        """Publish what is missing. Raises PenstockError."""
        answers = self._answers
        self._report.total(sum(len(answers.missing(batch)) for batch in self._batches))
        if not (self._batches or self._job.requests):
            return
        engine = start_engine(self._job, self._report)
        if not self._job.requests:
            self._run(engine, iter(()))
            return
        sent = Requests(self._job.requests, DecodeItem, self._report)
        with sent:
            self._run(engine, self._sent(sent))
        sent.close()

    def _run(self, engine: DecodeEngine, later: Iterator[list[Batch]]) -> None:
        answers, faults = self._answers, self._faults
        self._batches = self._batches or next(later, [])
        items = [item for batch in self._batches for item in batch if answers.missing([item])]
        # The last one first: its prompt is short.
        samples = (one for item in [*items[-1:], *items[:-1]] for one in self._read([item]))
        name, raised = resolve_engine(engine, self._within_context(engine, samples), faults)
        is_reduced = name != engines_for(self._job.engine)[0].name
        # Beside another process, what the check found may be for want of memory.
        if self._job.requests and (is_reduced or "shared_prefix_reason" in engine.run_stats()):
            return
        if name is None:
            faults.close()
            return
        spec = engine_of(name)
        left = [[item for item in batch if item.key not in raised] for batch in self._batches]
        self._batches = self._batches_for(spec, [batch for batch in left if batch])
        self._caption(engine, spec, later)
        self._report.note(**engine.run_stats())

    def _within_context(
        self, engine: DecodeEngine, samples: Iterable[DecodeRequest]
    ) -> Iterator[DecodeRequest]:
        """Yield the requests whose prompts fit the model. The others fail before prefill."""
        for request in samples:
            if (fault := engine.refusal(request)) is None:
                yield request
            else:
                self._refuse(request, fault)

    def _refuse(self, request: DecodeRequest, fault: UsageError | NotFinite) -> None:
        kind = fault.kind if isinstance(fault, NotFinite) else TOO_LONG
        meta = {"kind": kind, "message": fault.message, "hint": fault.hint}
        self._store_failure(request, meta)

    def _fail(self, request: DecodeRequest, fault: ItemFault) -> None:
        self._store_failure(request, fault.meta(STAGE))

    def _hold(self, request: DecodeRequest) -> None:
        """Answer a run for an item that raised, and that waits for another to succeed."""
        if self._job.requests:
            self._report.returned([request.item.key])

    def _store_failure(self, request: DecodeRequest, meta: dict[str, str]) -> None:
        """Store a failure under the caption's key, so that another model still tries the chunk."""
        self._answers.fail(request.item, meta)
        self._report.failure(request.item.key, **meta)
        self._done([self._answers.key(request.item)])

    def _sent(self, sent: Requests[DecodeItem]) -> Iterator[list[Batch]]:
        """Yield the batches of each message as it arrives."""
        for batches in sent:
            self._features.refresh()
            self._heard.refresh()
            self._carried = {request.item.key: request for batch in batches for request in batch}
            items = [[request.item for request in batch] for batch in batches]
            del batches  # a kept reference would keep its requests alive
            yield items

    def _read_carried(self, batch: Batch) -> list[DecodeRequest]:
        """Return the requests of a batch, which carry what was sent until it is answered."""
        return [
            request._replace(work=self._carried.pop(request.item.key, None))
            for request in self._read(batch)
        ]

    def _read(self, batch: Batch) -> list[DecodeRequest]:
        """Return the requests of a batch. Raises DamagedRecord."""
        try:
            keys = {item.features for item in batch}  # several prompts may use the same chunk
            records = {key: read_features(self._features, key) for key in keys}
            return [
                DecodeRequest(item, with_heard(records[item.features], self._heard, item.heard))
                for item in batch
            ]
        except RecordGone as error:
            keys = {
                k for batch in self._batches for item in batch for k in (item.features, item.heard)
            }
            for record_set in (self._features, *self._heard.record_sets):
                quarantine_packs(self._store, record_set, keys)
            raise DamagedRecord(
                f"{error.message}; the features were moved to {self._store.url}/{QUARANTINE}",
                hint="Run the same command again to encode them",
            ) from error

    def _batches_for(self, spec: EngineSpec, batches: list[Batch]) -> list[Batch]:
        """Return what is missing, grouped for the engine that makes the captions from now on."""
        job, answers, first = self._job, self._answers, engines_for(self._job.engine)[0]
        if spec is not first:
            batches = rebatch(batches, job.fallback_batch)
            answers.made_by = FALLBACK if job.fallback_namespace else OWN
        batches = [batch for batch in batches if answers.missing(batch)]
        self._missing |= {key for batch in batches for key in answers.missing(batch)}
        if spec.depends_on_batch:
            return batches
        missing = [[item for item in batch if self._is_missing(item)] for batch in batches]
        # So that processes on equal devices can share even a single batch, about evenly.
        missing = rebatch(missing, -(-job.share.items // CLAIMS_PER_SHARE))
        batches = longest_first(missing, job.previous_lengths)
        return by_chunk(batches) if spec.by_chunk or spec.gguf else batches

    def _is_missing(self, item: DecodeItem) -> bool:
        return self._answers.key(item) in self._missing

    def _claimed(
        self, claims: WorkClaims, spec: EngineSpec, later: Iterator[list[Batch]]
    ) -> Iterator[Batch]:
        """Yield the batches that this process must compute, and those of later messages."""
        if not self._job.requests:
            yield from claims.claimed_batches(self._batches, self._answers.missing)
            return
        for batches in chain([self._batches], (self._batches_for(spec, some) for some in later)):
            self._batches = batches or self._batches
            for batch in batches:
                if claims.take(partial(self._answers.missing, batch)):
                    yield batch
            self._carried.clear()  # another process has or makes the others

    def _caption(
        self, engine: DecodeEngine, spec: EngineSpec, later: Iterator[list[Batch]]
    ) -> None:
        """Caption the batches, and those that arrive later, as far as no other process does."""
        answers = self._answers
        fields = origin_of(spec, engine, self._job)
        if generation := self._job.generation.non_defaults:
            fields["generation"] = generation

        def spare() -> Any:
            return engine.generate_batch(self._read(self._batches[-1][-1:]))

        oom_retry = OomRetry(self._report, spare, self._faults)
        to_retry: list[DecodeItem] = []
        with (
            claims_at(self._store, *answers.record_sets, share=self._job.share) as claims,
            Prefetched(
                self._claimed(claims, spec, later), self._read_carried, idle=self._report.idle
            ) as ready,
            write_behind(partial(self._publish, claims), on_error=ready.close) as publish,
        ):
            self._done = claims.done
            for requests, outputs in engine.run(ready, oom_retry):
                pairs = []
                for one, output in zip(requests, outputs, strict=True):
                    if output.fault is not None:
                        if self._is_missing(one.item):
                            self._refuse(one, output.fault)
                    elif self._job.generation.retry_loops and _is_repetitive(output):
                        to_retry.append(one.item._replace(again=True))
                    else:
                        pairs.append((one, output))
                publish(self._records(fields, pairs))
                del requests, outputs, pairs, one  # a kept reference would keep requests alive
            for item in filter(self._is_missing, to_retry):
                for some, outputs in oom_retry.run_batch(
                    self._read([item]), lambda one: one.item.key, engine.generate_batch
                ):
                    publish(self._records(fields, zip(some, outputs, strict=True)))
            if not self._job.requests:
                self._faults.close()

    def _publish(self, claims: WorkClaims, made: list[list[Record]]) -> None:
        """Store captions that were missing, report them, and release their claims."""
        records = [record for batch in made for record in batch if record.key in self._missing]
        tokens = {record.key: record.meta["tokens"] for record in records}
        new = self._answers.publish(records)
        for key in new:
            self._report.answered(key, tokens=tokens[key])
        if self._job.requests:  # another process was first with the others
            self._report.returned(tokens.keys() - {*new})
        claims.done(tokens)

    def _records(
        self, fields: dict[str, Json], pairs: Iterable[tuple[DecodeRequest, CaptionOutput]]
    ) -> list[Record]:
        """Return the records of captions. JSON that was cut has none: it becomes a failure."""
        records, limit = [], self._job.max_new_tokens
        for one, output in pairs:
            if not (self._job.generation.schema and _is_cut_json(output)):
                records.append(self._record(fields, one, output))
            elif self._is_missing(one.item):
                why = f"the JSON was cut after {output.tokens} tokens, at --max-new-tokens {limit}"
                hint = "Give a larger --max-new-tokens: then only what was cut is made again"
                self._store_failure(one, {"kind": CUT, "message": why, "hint": hint})
        return records

    def _record(
        self, fields: dict[str, Json], request: DecodeRequest, output: CaptionOutput
    ) -> Record:
        """Return the record of a caption; that of a retried one says whether it repeats itself."""
        meta = output.meta | fields
        if request.item.again:
            meta |= {"retried": "loop", "loops": _is_repetitive(output)}
        return Record(key=self._answers.key(request.item), meta=meta)


def _is_cut_json(output: CaptionOutput) -> bool:
    """Return whether an answer under a schema ended at its token limit before it was complete."""
    return output.finish_reason == "length" and is_cut(output.caption)


def _is_repetitive(output: CaptionOutput) -> bool:
    """Return whether a caption repeats itself."""
    return is_repetitive(output.caption, output.finish_reason)


def quarantine_packs(store: Store, record_set: RecordSet, keys: set[str]) -> None:
    """Quarantine every pack of features that holds one of these keys, so that they are encoded
    again. All packs go at once, because a record that cannot be read means that the others of its
    cache namespace cannot be read either."""
    for name in list(store.list(record_set.folder)):
        # Another process may have quarantined it already.
        with contextlib.suppress(FileNotFoundError, DamagedRecord):
            if any(key in keys for key, _ in read_header(store, name)):
                quarantine(store, name)
