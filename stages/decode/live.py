"""The decode stage as one that stays: says what it is asked as it is asked, and tells the words
while they are said. It knows nothing of who asks.

What was made is stored as any run stores it, so that the same question is never answered twice.
"""

import contextlib
from collections.abc import Iterator
from itertools import chain
from pkgutil import resolve_name

from artifacts.errors import PenstockError
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from artifacts.tensors import RecordGone
from stages.decode.engines import choice_of, engine_of
from stages.decode.faults import STAGE, failing, settled
from stages.decode.job import DecodeItem, DecodeJob
from stages.decode.prompts import ContextExceeded
from stages.decode.protocol import Asked, Said, Speaker
from stages.decode.stored import read_features
from stages.memory.item_faults import ItemFaults
from stages.memory.shrinking import Shrinking
from stages.models.prefetch import prefetched
from stages.process.events import TOO_LONG, UNSUPPORTED, Words
from stages.process.live import ToldBatches, ToldWork
from stages.process.report import Report

TRIAL_LETTERS = 500
"""Letters of the prompt by which an engine is tried."""


def run_live(job: DecodeJob, report: Report) -> None:
    """Publish and tell a caption for each member that is told."""
    first, store = choice_of(job.engine)[0], open_store(job.store)
    features = RecordSet(store, "features", job.features_namespace)
    answers = [RecordSet(store, "captions", n) for n in (job.namespace, job.instead) if n]
    start: type[Speaker] = resolve_name(first.entry)
    speaker = start(job)
    report.note(ready=True, **speaker.facts())

    def read(batch: list[ToldWork[DecodeItem]]) -> list[Asked]:
        return [asked for work in batch for asked in _read(features, work, report)]

    batches = iter(ToldBatches(job.live, DecodeItem))
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

    def tell(one: Asked, said: Said) -> None:
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
            Words(
                key=one.member.key,
                caption=said.caption,
                tokens=said.tokens,
                ended=said.ended,
                prompt_tokens=said.prompt_tokens,
                stopped=said.stopped,
            )
        )

    def overheard(one: Asked, text: str, tokens: int) -> None:
        report.send(Words(key=one.member.key, caption=text, tokens=tokens))

    speaker.overhear(overheard)
    shrinking = Shrinking(report, lambda: speaker.say(asked[:1]), faults)
    coming = (found for _, found in prefetched(batches, read))
    with contextlib.closing(coming):
        for some, said in speaker.run(filter(None, chain([asked], coming)), shrinking):
            for one, words in zip(some, said, strict=True):
                tell(one, words)


def _shortened(asked: Asked) -> Asked:
    """Return the same with a prompt of a usual length: who asks first is not to decide how long a
    trial takes."""
    member = asked.member._replace(prompt=asked.member.prompt[:TRIAL_LETTERS])
    return asked._replace(member=member, work=None)


def _read(features: RecordSet, work: ToldWork[DecodeItem], report: Report) -> Iterator[Asked]:
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
        yield Asked(work.item, row, work)
    except (PenstockError, RecordGone) as error:
        hint = "Ask again: it is encoded anew"
        report.failure(work.item.key, "gone", getattr(error, "message", str(error)), hint)
