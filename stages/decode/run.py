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

from artifacts.claims import turns_at
from artifacts.errors import PenstockError
from artifacts.pack_object import QUARANTINE, DamagedRecord, quarantine, read_header
from artifacts.packs import Record, RecordSet
from artifacts.record_union import RecordUnion, record_sets_of
from artifacts.store import Store, open_store
from artifacts.tensors import RecordGone
from stages.decode.batches import (
    Batch,
    by_chunk,
    longest_first,
    missing_keys,
    rebatch,
    swap_engine_keys,
)
from stages.decode.engines import engine_of, engines_for
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
from stages.process.events import TOO_LONG, UNSUPPORTED, CaptionProgress
from stages.process.job import parse_job
from stages.process.live import PipedRequest, RequestBatches
from stages.process.report import EventReporter

CHECK_LETTERS = 500
"""Letters of the prompt by which an engine is tried."""


def serve_requests(job: DecodeJob, report: EventReporter) -> None:
    """Publish and tell a caption for each member that is told."""
    first, store = engines_for(job.engine)[0], open_store(job.store)
    features = RecordSet(store, "features", job.features_namespace)
    answers = [RecordSet(store, "captions", n) for n in (job.namespace, job.instead) if n]
    start: type[DecodeEngine] = resolve_name(first.entry)
    engine = start(job)
    report.note(ready=True, **engine.load_info())

    def read(batch: list[PipedRequest[DecodeItem]]) -> list[DecodeRequest]:
        return [requests for work in batch for requests in _read(features, work, report)]

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

    def publish_output(one: DecodeRequest, outputs: CaptionOutput) -> None:
        if one.is_withdrawn:  # it may have been left off
            return
        if outputs.fault is not None:
            fault = outputs.fault
            kind = TOO_LONG if isinstance(fault, ContextExceeded) else UNSUPPORTED
            report.failure(one.item.key, kind, fault.message, fault.hint)
            return
        more = {"prompt_tokens": outputs.prompt_tokens, "stopped": outputs.stopped}
        record = Record(
            key=one.item.instead if is_other else one.item.key,
            meta=outputs.meta | more | spec.meta,
        )
        answers[0].publish([record])
        answers[0].leave([record.key])
        report.send(
            CaptionProgress(
                key=one.item.key,
                caption=outputs.caption,
                tokens=outputs.tokens,
                ended=outputs.finish_reason,
                prompt_tokens=outputs.prompt_tokens,
                stopped=outputs.stopped,
            )
        )

    def send_partial(one: DecodeRequest, text: str, tokens: int) -> None:
        report.send(CaptionProgress(key=one.item.key, caption=text, tokens=tokens))

    engine.set_on_partial(send_partial)
    oom_retry = OomRetry(report, lambda: engine.generate_batch(requests[:1]), faults)
    prefetch_requests = (found for _, found in prefetched(batches, read))
    with contextlib.closing(prefetch_requests):
        for some, outputs in engine.run(
            filter(None, chain([requests], prefetch_requests)), oom_retry
        ):
            for one, output in zip(some, outputs, strict=True):
                publish_output(one, output)


def _shorten_prompt(requests: DecodeRequest) -> DecodeRequest:
    """Return the same with a prompt of a usual length: who asks first is not to decide how long a
    trial takes."""
    item = requests.item._replace(prompt=requests.item.prompt[:CHECK_LETTERS])
    return requests._replace(item=item, work=None)


def _read(
    features: RecordSet, work: PipedRequest[DecodeItem], report: EventReporter
) -> Iterator[DecodeRequest]:
    """Yield what is asked of one chunk, unless its features are gone."""
    key = work.item.features
    try:
        if key not in features:
            features.find([key])
        if key not in features:
            features.refresh()
        if key not in features:  # it was left, and others of its pack were not
            features.leave(features.keys())
            features.refresh()
        features_record = read_features(features, key)
        features.leave([key])
        yield DecodeRequest(work.item, features_record, work)
    except (PenstockError, RecordGone) as error:
        hint = "Ask again: it is encoded anew"
        report.failure(work.item.key, "gone", getattr(error, "message", str(error)), hint)


def warm(job_fields: dict[str, Any]) -> None:
    """Import what the engine and its model need, before what the stage takes is counted."""
    job = parse_job(DecodeJob, {**job_fields, "batches": []})  # of 100,000 items
    for spec in engines_for(job.engine):
        resolve_name(spec.entry)
    if job.generation.schema or job.live:  # which any request may ask for
        resolve_name("stages.decode.constraint")
    warm_model(job_fields)


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Publish a caption for each member of `batches` that has none."""
    job = parse_job(DecodeJob, job_fields)
    if job.live:
        serve_requests(job, report)
        return
    first = engines_for(job.engine)[0]
    store = open_store(job.store)
    names = [name for name in (job.namespace, job.instead) if name]
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
            keys = {item.features for item in batch}  # several may ask of one chunk
            feature_records = {key: read_features(features, key) for key in keys}
            return [DecodeRequest(item, feature_records[item.features]) for item in batch]
        except RecordGone as error:
            keys = {item.features for batch in batches for item in batch}
            quarantine_packs(store, features, keys)
            raise DamagedRecord(
                f"{error.message}; the features are set aside in {store.url}/{QUARANTINE}",
                hint="Run the same command again: it encodes them anew",
            ) from error

    faults = DecodeFaults(job.batches, answers, report)
    samples = (requests for sample in samples_of(batches, answers) for requests in read(sample))
    name, raised = resolve_engine(engine, faults.within_context(engine, samples), faults.items)
    if name is None:
        faults.items.close()
        return
    spec, batches = engine_of(name), without(batches, raised)
    if spec is not first:
        batches = rebatch(batches, job.batch_instead)
        if job.instead:
            answers.reverse()
            batches = swap_engine_keys(batches)
    batches = [batch for batch in batches if missing_keys(batch, answers)]
    missing = {key for batch in batches for key in missing_keys(batch, answers)}
    if not spec.depends_on_batch:
        left = [[item for item in batch if item.key in missing] for batch in batches]
        batches = longest_first(left, job.said_before)
        batches = by_chunk(batches) if spec.by_chunk else batches

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
    extra_fields: dict[str, Any] = {**spec.meta}
    if generation := job.generation.non_defaults:
        extra_fields["generation"] = generation
    with (
        turns_at(store, *(each for union in answers for each in union.record_sets)) as turns,
        write_behind(publish) as later,
        contextlib.closing(
            requests
            for _, requests in prefetched(
                turns.mine(batches, partial(missing_keys, answers=answers)), read
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


def _record(
    extra_fields: dict[str, Any], requests: DecodeRequest, outputs: CaptionOutput
) -> Record:
    """Return the caption as it is stored; one that was said again says so, and how that ended."""
    meta = outputs.meta | extra_fields
    if requests.item.again:
        meta |= {"retried": "loop", "loops": _is_repetitive(outputs)}
    return Record(key=requests.item.key, meta=meta)


def _is_repetitive(outputs: CaptionOutput) -> bool:
    """Return whether a caption goes round in circles; an answer that was closed early, whether one
    of its values does."""
    if outputs.closed_early:
        return any(is_repetitive(text, "length") for text in texts_within(outputs.caption))
    return is_repetitive(outputs.caption, outputs.finish_reason)


def quarantine_packs(store: Store, record_set: RecordSet, keys: set[str]) -> None:
    """Move whole packs of features out of the way, so that what is in them is made again. All go at
    once, because what is wrong with one of a namespace is wrong with the others."""
    for name in list(store.list(record_set.folder)):
        # Another run may have set it aside, or another reader.
        with contextlib.suppress(FileNotFoundError, DamagedRecord):
            if any(key in keys for key, _ in read_header(store, name)):
                quarantine(store, name)
