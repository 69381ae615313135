"""The decode stage: turns feature records and prompts into captions, in one process for a whole
wave.

Where a caption's bytes depend on its batch, the engine always gets the whole batch, because some of
its rows may have been captioned before.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pkgutil import resolve_name
from typing import Any

from artifacts.claims import claims_at
from artifacts.errors import PenstockError
from artifacts.pack_object import QUARANTINE, DamagedRecord, quarantine, read_header
from artifacts.packs import Record, RecordSet
from artifacts.record_union import RecordUnion, record_sets_of
from artifacts.store import Store, open_store
from artifacts.tensors import RecordGone
from stages.decode.batches import (
    Batch,
    by_chunk,
    for_fallback,
    longest_first,
    missing_keys,
    rebatch,
)
from stages.decode.engines import EngineSpec, engine_of, engines_for
from stages.decode.faults import (
    STAGE,
    DecodeFaults,
    refuse_request,
    resolve_engine,
    samples_of,
    without,
)
from stages.decode.job import DecodeItem, DecodeJob
from stages.decode.json_schema import texts_within
from stages.decode.prompts import ContextExceeded
from stages.decode.protocol import CaptionOutput, DecodeEngine, DecodeRequest
from stages.decode.repetition import is_repetitive
from stages.decode.stored import read_features
from stages.memory.item_faults import ItemFaults
from stages.memory.oom_retry import OomRetry
from stages.models.loading import warm as warm_model
from stages.models.prefetch import prefetched, write_behind
from stages.process.device import device_model
from stages.process.events import TOO_LONG, UNSUPPORTED, CaptionProgress
from stages.process.job import parse_job
from stages.process.live import PipedRequest, RequestBatches
from stages.process.report import EventReporter

CHECK_LETTERS = 500
"""Maximum number of characters of the prompt in the check before use."""


def serve_requests(job: DecodeJob, report: EventReporter) -> None:
    """Caption the requests that arrive over the job's pipe: publish each caption and send it."""
    first, store = engines_for(job.engine)[0], open_store(job.store)
    places = [("features", n) for n in (job.features_namespace, *job.other_features)]
    features = RecordUnion(record_sets_of(store, *places))
    answers = [RecordSet(store, "captions", n) for n in (job.namespace, job.instead) if n]
    start: type[DecodeEngine] = resolve_name(first.entry)
    engine = start(job)
    report.note(ready=True, **engine.load_info())

    def read(batch: list[PipedRequest[DecodeItem]]) -> list[DecodeRequest]:
        return [request for work in batch for request in _read(features, work, report)]

    batches = iter(RequestBatches(job.live, DecodeItem))
    faults = ItemFaults(STAGE, refuse_request(report))
    for work_batch in batches:
        requests = read(work_batch)
        name, raised = resolve_engine(engine, map(_shorten_prompt, requests), faults)
        requests = [one for one in requests if one.item.key not in raised]
        if name is not None:
            break
    else:
        return
    spec = engine_of(name)
    report.note(engine=spec.name)
    if spec is not first and job.instead:
        answers.reverse()
    is_other = spec is not first and bool(job.instead)

    origin = origin_of(spec, engine, job)

    def publish_output(one: DecodeRequest, output: CaptionOutput) -> None:
        if one.is_withdrawn:  # its caption may be incomplete
            return
        if output.fault is not None:
            fault = output.fault
            kind = TOO_LONG if isinstance(fault, ContextExceeded) else UNSUPPORTED
            report.failure(one.item.key, kind, fault.message, fault.hint)
            return
        more = {"prompt_tokens": output.prompt_tokens, "stopped": output.stopped}
        record = Record(
            key=one.item.instead if is_other else one.item.key,
            meta=output.meta | more | origin,
        )
        answers[0].publish([record])
        answers[0].forget([record.key])
        report.send(
            CaptionProgress(
                key=one.item.key,
                caption=output.caption,
                tokens=output.tokens,
                ended=output.finish_reason,
                prompt_tokens=output.prompt_tokens,
                stopped=output.stopped,
            )
        )

    def send_partial(one: DecodeRequest, text: str, tokens: int) -> None:
        report.send(CaptionProgress(key=one.item.key, caption=text, tokens=tokens))

    engine.set_on_partial(send_partial)
    oom_retry = OomRetry(report, lambda: engine.generate_batch(requests[:1]), faults)
    later_batches = (found for _, found in prefetched(batches, read))
    with contextlib.closing(later_batches):
        request_batches = filter(None, chain([requests], later_batches))
        for some, outputs in engine.run(request_batches, oom_retry):
            for one, output in zip(some, outputs, strict=True):
                publish_output(one, output)


def origin_of(spec: EngineSpec, engine: DecodeEngine, job: DecodeJob) -> dict[str, Any]:
    """Return what each caption's record says about its computation: the engine, and on a GPU the
    rows of a step and the card, because generations of cards may round differently."""
    card = device_model(job.half.device)
    return {**spec.meta, **engine.caption_fields(), **({"card": card} if card else {})}


def _shorten_prompt(request: DecodeRequest) -> DecodeRequest:
    """Return the request with a shortened prompt, so that the first request's prompt does not
    decide how long the check takes."""
    item = request.item._replace(prompt=request.item.prompt[:CHECK_LETTERS])
    return request._replace(item=item, work=None)


def _read(
    features: RecordUnion, work: PipedRequest[DecodeItem], report: EventReporter
) -> Iterator[DecodeRequest]:
    """Yield a request with its features. If they are missing or damaged, report a failure."""
    key = work.item.features
    try:
        if key not in features:
            features.look_up([key])
        if key not in features:
            features.refresh()
        if key not in features:  # dropped here, while other records of its pack were kept
            features.forget(features.keys())
            features.refresh()
        features_record = read_features(features, key)
        features.forget([key])
        yield DecodeRequest(work.item, features_record, work)
    except (PenstockError, RecordGone) as error:
        hint = "Send the request again: its media is encoded again"
        report.failure(work.item.key, "gone", getattr(error, "message", str(error)), hint)


def warm(job_fields: dict[str, Any]) -> None:
    """Import what the engine and its model need, before the stage's memory is measured."""
    job = parse_job(DecodeJob, {**job_fields, "batches": []})  # without parsing 100,000 items
    for spec in engines_for(job.engine):
        resolve_name(spec.entry)
    if job.generation.schema or job.live:  # any request may have a schema
        resolve_name("stages.decode.constraint")
    warm_model(job_fields)


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Publish a caption for each item of `batches` that has neither a caption nor a failure."""
    job = parse_job(DecodeJob, job_fields)
    if job.live:
        serve_requests(job, report)
        return
    first = engines_for(job.engine)[0]
    store = open_store(job.store)
    names = [name for name in (job.namespace, job.instead, job.compiled_namespace) if name]
    places = [(kind, name) for name in names for kind in ("captions", "failures")]
    features, *record_sets = record_sets_of(store, ("features", job.features_namespace), *places)
    answers = [RecordUnion(record_sets[at : at + 2]) for at in range(0, len(record_sets), 2)]
    batches = [batch for batch in job.batches if missing_keys(batch, answers)]
    report.total(sum(len(missing_keys(batch, answers)) for batch in batches))
    if not batches:
        return
    start: type[DecodeEngine] = resolve_name(first.entry)
    engine = start(job)
    report.note(ready=True, **engine.load_info())

    def read(batch: Batch) -> list[DecodeRequest]:
        try:
            keys = {item.features for item in batch}  # several prompts may use the same chunk
            feature_records = {key: read_features(features, key) for key in keys}
            return [DecodeRequest(item, feature_records[item.features]) for item in batch]
        except RecordGone as error:
            keys = {item.features for batch in batches for item in batch}
            quarantine_packs(store, features, keys)
            raise DamagedRecord(
                f"{error.message}; the features were moved to {store.url}/{QUARANTINE}",
                hint="Run the same command again to encode them",
            ) from error

    faults = DecodeFaults(job.batches, answers, report)
    samples = (request for sample in samples_of(batches, answers) for request in read(sample))
    name, raised = resolve_engine(engine, faults.within_context(engine, samples), faults.items)
    if name is None:
        faults.items.close()
        return
    spec, batches = engine_of(name), without(batches, raised)
    if spec.compiled and not first.compiled:
        batches = longest_first(batches, job.said_before)  # by their keys before the swap
        answers[0], answers[2] = answers[2], answers[0]
        batches = [[m._replace(key=m.compiled, compiled=m.key) for m in batch] for batch in batches]
    elif spec is not first:
        batches = rebatch(batches, job.batch_instead)
        if job.instead:
            answers[0], answers[1] = answers[1], answers[0]
            batches = for_fallback(batches)
    batches = [batch for batch in batches if missing_keys(batch, answers)]
    missing = {key for batch in batches for key in missing_keys(batch, answers)}
    if not spec.depends_on_batch:
        left = [[item for item in batch if item.key in missing] for batch in batches]
        batches = longest_first(left, job.said_before)
        batches = by_chunk(batches) if spec.by_chunk or spec.gguf else batches

    def publish(made: list[list[Record]]) -> None:
        records = [record for batch in made for record in batch if record.key in missing]
        tokens = {record.key: record.meta["tokens"] for record in records}
        for key in answers[0].publish(records):
            report.item(key, tokens=tokens[key])
        turns.done(tokens)

    oom_retry = OomRetry(
        report, lambda: engine.generate_batch(read(batches[-1][-1:])), faults.items
    )
    retries = job.generation.retry_loops
    to_retry: list[DecodeItem] = []
    extra_fields = origin_of(spec, engine, job)
    if generation := job.generation.non_defaults:
        extra_fields["generation"] = generation
    with (
        claims_at(store, *(each for union in answers for each in union.record_sets)) as turns,
        write_behind(publish) as later,
        contextlib.closing(
            requests
            for _, requests in prefetched(
                turns.claimed_batches(batches, partial(missing_keys, answers=answers)), read
            )
        ) as ready,
    ):
        faults.done = turns.done
        for requests, outputs in engine.run(ready, oom_retry):
            records = []
            for one, output in zip(requests, outputs, strict=True):
                if output.fault is not None:
                    if one.item.key in missing:
                        faults.refuse(one, output.fault)
                elif retries and _is_repetitive(output):
                    to_retry.append(one.item._replace(again=True))
                else:
                    records.append(_record(extra_fields, one, output))
            later(records)
        for requests in (read([item]) for item in to_retry if item.key in missing):
            for some, outputs in oom_retry.run_batch(
                requests, lambda one: one.item.key, engine.generate_batch
            ):
                later([_record(extra_fields, *pair) for pair in zip(some, outputs, strict=True)])
        faults.items.close()
    report.note(**engine.run_stats())


def _record(extra_fields: dict[str, Any], request: DecodeRequest, output: CaptionOutput) -> Record:
    """Return the record of a caption. A retried caption notes the retry, and whether it repeats
    itself again."""
    meta = output.meta | extra_fields
    if request.item.again:
        meta |= {"retried": "loop", "loops": _is_repetitive(output)}
    return Record(key=request.item.key, meta=meta)


def _is_repetitive(output: CaptionOutput) -> bool:
    """Return whether a caption repeats itself; for an answer that was closed early, whether one of
    its values does."""
    if output.closed_early:
        return any(is_repetitive(text, "length") for text in texts_within(output.caption))
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
