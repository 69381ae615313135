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
from stages.decode.faults import STAGE, DecodeFaults, failing, samples_of, settled, without
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

TRIAL_LETTERS = 500
"""Letters of the prompt by which an engine is tried."""


def serve_requests(job: DecodeJob, report: EventReporter) -> None:
    """Publish and tell a caption for each member that is told."""
    first, store = engines_for(job.engine)[0], open_store(job.store)
    features = RecordSet(store, "features", job.features_namespace)
    answers = [RecordSet(store, "captions", n) for n in (job.namespace, job.instead) if n]
    start: type[DecodeEngine] = resolve_name(first.entry)
    speaker = start(job)
    report.note(ready=True, **speaker.facts())

    def read(batch: list[PipedRequest[DecodeItem]]) -> list[DecodeRequest]:
        return [asked for work in batch for asked in _read(features, work, report)]

    batches = iter(RequestBatches(job.live, DecodeItem))
    faults = ItemFaults(STAGE, failing(report))
    for begun in batches:
        asked = read(begun)
        name, raised = settled(speaker, map(_shortened, asked), faults)
        asked = [one for one in asked if one.member.key not in raised]
        if name is not None:
            break
    else:
        return
    engine = engine_of(name)
    report.note(engine=engine.name)
    if engine is not first and job.instead:
        answers.reverse()
    is_other = engine is not first and bool(job.instead)

    def tell(one: DecodeRequest, said: CaptionOutput) -> None:
        if one.is_withdrawn:  # it may have been left off
            return
        if said.fault is not None:
            fault = said.fault
            kind = TOO_LONG if isinstance(fault, ContextExceeded) else UNSUPPORTED
            report.failure(one.member.key, kind, fault.message, fault.hint)
            return
        more = {"prompt_tokens": said.prompt_tokens, "stopped": said.stopped}
        record = Record(
            key=one.member.instead if is_other else one.member.key,
            meta=said.meta | more | engine.meta,
        )
        answers[0].publish([record])
        answers[0].leave([record.key])
        report.send(
            CaptionProgress(
                key=one.member.key,
                caption=said.caption,
                tokens=said.tokens,
                ended=said.ended,
                prompt_tokens=said.prompt_tokens,
                stopped=said.stopped,
            )
        )

    def overheard(one: DecodeRequest, text: str, tokens: int) -> None:
        report.send(CaptionProgress(key=one.member.key, caption=text, tokens=tokens))

    speaker.overhear(overheard)
    shrinking = OomRetry(report, lambda: speaker.say(asked[:1]), faults)
    coming = (found for _, found in prefetched(batches, read))
    with contextlib.closing(coming):
        for some, said in speaker.run(filter(None, chain([asked], coming)), shrinking):
            for one, words in zip(some, said, strict=True):
                tell(one, words)


def _shortened(asked: DecodeRequest) -> DecodeRequest:
    """Return the same with a prompt of a usual length: who asks first is not to decide how long a
    trial takes."""
    member = asked.member._replace(prompt=asked.member.prompt[:TRIAL_LETTERS])
    return asked._replace(member=member, work=None)


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
        row = read_features(features, key)
        features.leave([key])
        yield DecodeRequest(work.item, row, work)
    except (PenstockError, RecordGone) as error:
        hint = "Ask again: it is encoded anew"
        report.failure(work.item.key, "gone", getattr(error, "message", str(error)), hint)


def warm(told: dict[str, Any]) -> None:
    """Import what the engine and its model need, before what the stage takes is counted."""
    job = parse_job(DecodeJob, {**told, "batches": []})  # of 100,000 items
    for engine in engines_for(job.engine):
        resolve_name(engine.entry)
    if job.generation.schema or job.live:  # which any request may ask for
        resolve_name("stages.decode.constraint")
    warm_model(told)


def run(told: dict[str, Any], report: EventReporter) -> None:
    """Publish a caption for each member of `batches` that has none."""
    job = parse_job(DecodeJob, told)
    if job.live:
        serve_requests(job, report)
        return
    first = engines_for(job.engine)[0]
    store = open_store(job.store)
    names = [name for name in (job.namespace, job.instead) if name]
    places = [(kind, name) for name in names for kind in ("captions", "failures")]
    features, *held = record_sets_of(store, ("features", job.features_namespace), *places)
    answers = [RecordUnion(held[at : at + 2]) for at in range(0, len(held), 2)]
    batches = [batch for batch in job.batches if missing_keys(batch, answers)]
    report.total(sum(len(missing_keys(batch, answers)) for batch in batches))
    if not batches:
        return
    start: type[DecodeEngine] = resolve_name(first.entry)
    speaker = start(job)
    report.note(ready=True, **speaker.facts())

    def read(batch: Batch) -> list[DecodeRequest]:
        try:
            keys = {member.features for member in batch}  # several may ask of one chunk
            rows = {key: read_features(features, key) for key in keys}
            return [DecodeRequest(member, rows[member.features]) for member in batch]
        except RecordGone as error:
            keys = {member.features for batch in batches for member in batch}
            set_packs_aside(store, features, keys)
            raise DamagedRecord(
                f"{error.message}; the features are set aside in {store.url}/{QUARANTINE}",
                hint="Run the same command again: it encodes them anew",
            ) from error

    faults = DecodeFaults(job.batches, answers, report)
    samples = (asked for sample in samples_of(batches, answers) for asked in read(sample))
    name, raised = settled(speaker, faults.fitting(speaker, samples), faults.items)
    if name is None:
        faults.items.close()
        return
    engine, batches = engine_of(name), without(batches, raised)
    if engine is not first:
        batches = rebatch(batches, job.batch_instead)
        if job.instead:
            answers.reverse()
            batches = swap_engine_keys(batches)
    batches = [batch for batch in batches if missing_keys(batch, answers)]
    wanted = {key for batch in batches for key in missing_keys(batch, answers)}
    if not engine.batch_decides:
        left = [[member for member in batch if member.key in wanted] for batch in batches]
        batches = longest_first(left, job.said_before)
        batches = by_chunk(batches) if engine.by_chunk else batches

    def publish(made: list[list[Record]]) -> None:
        records = [record for batch in made for record in batch if record.key in wanted]
        tokens = {record.key: record.meta["tokens"] for record in records}
        for key in answers[0].publish(records):
            report.item(key, tokens=tokens[key])
        turns.done(tokens)

    shrinking = OomRetry(report, lambda: speaker.say(read(batches[-1][-1:])), faults.items)
    retries = job.generation.retry_loops
    again: list[DecodeItem] = []
    beside: dict[str, Any] = {**engine.meta}
    if generation := job.generation.told:
        beside["generation"] = generation
    with (
        turns_at(store, *(each for union in answers for each in union.record_sets)) as turns,
        write_behind(publish) as later,
        contextlib.closing(
            asked
            for _, asked in prefetched(
                turns.mine(batches, partial(missing_keys, answers=answers)), read
            )
        ) as ready,
    ):
        faults.done = turns.done
        for asked, said in speaker.run(ready, shrinking):
            records = []
            for one, words in zip(asked, said, strict=True):
                if words.fault is not None:
                    if one.member.key in wanted:
                        faults.refuse(one, words.fault)
                elif retries and _goes_round(words):
                    again.append(one.member._replace(again=True))
                else:
                    records.append(_record(beside, one, words))
            later(records)
        for asked in (read([member]) for member in again if member.key in wanted):
            for some, said in shrinking.run_batch(asked, lambda one: one.member.key, speaker.say):
                later([_record(beside, *pair) for pair in zip(some, said, strict=True)])
        faults.items.close()
    report.note(**speaker.findings())


def _record(beside: dict[str, Any], asked: DecodeRequest, said: CaptionOutput) -> Record:
    """Return the caption as it is stored; one that was said again says so, and how that ended."""
    meta = said.meta | beside
    if asked.member.again:
        meta |= {"retried": "loop", "loops": _goes_round(said)}
    return Record(key=asked.member.key, meta=meta)


def _goes_round(said: CaptionOutput) -> bool:
    """Return whether a caption goes round in circles; an answer that was closed early, whether one
    of its values does."""
    if said.shortened:
        return any(is_repetitive(text, "length") for text in texts_within(said.caption))
    return is_repetitive(said.caption, said.ended)


def set_packs_aside(store: Store, record_set: RecordSet, keys: set[str]) -> None:
    """Move whole packs of features out of the way, so that what is in them is made again. All go at
    once, because what is wrong with one of a namespace is wrong with the others."""
    for name in list(store.list(record_set.folder)):
        # Another run may have set it aside, or another reader.
        with contextlib.suppress(FileNotFoundError, DamagedRecord):
            if any(key in keys for key, _ in read_header(store, name)):
                quarantine(store, name)
