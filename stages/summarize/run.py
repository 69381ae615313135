"""The summarize stage: turns the captions of each medium into chapters and a summary, in one
process."""

from collections.abc import Callable
from functools import partial
from typing import Any

from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from stages.memory.item_faults import ItemFault, ItemFaults
from stages.memory.oom_retry import try_items
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.process.job import parse_job
from stages.process.report import EventReporter
from stages.summarize.job import SummaryItem, SummaryJob
from stages.summarize.packing import TimedText
from stages.summarize.summarizer import Summarizer, Summary, SummaryNode


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Publish the missing summaries. Each summary node is published as soon as it is generated."""
    job = parse_job(SummaryJob, job_fields)
    store = open_store(job.store)
    records, failures = (
        RecordSet(store, kind, job.namespace) for kind in ("summaries", "failures")
    )
    media = [medium for medium in job.media if medium.key not in records]
    if not media:
        return
    source = ModelJob.of(job.half)
    processor, half = source.processor(), source.load_reloadable("language")
    report.note(ready=True, **facts(half.model))

    def fail(medium: SummaryItem, fault: ItemFault) -> None:
        meta = fault.meta("summarize")
        failures.publish([Record(key=medium.key, meta=meta)])
        report.failure(medium.digest, **meta)

    faults = ItemFaults("summarize", fail, len(media) if len(media) == len(job.media) else 0)
    for medium in media:
        make = partial(_summarize, job, processor, records, report, half.confirm, medium.texts)
        results, message, fault = try_items(partial(half.call, make))
        if message is not None:
            raise MemoryError(message)
        if fault is None:
            faults.note_success()
            records.publish([Record(key=medium.key, meta=_meta(results.pop()))])
        else:
            faults.add(medium, fault)
    faults.close()


def _meta(made: Summary | SummaryNode) -> dict[str, Any]:
    """Return the fields of a record; those about reasoning only where there is some."""
    reasoning = ("reasoning", "reasons")
    return {n: value for n, value in made._asdict().items() if value or n not in reasoning}


def _summarize(
    job: SummaryJob,
    processor: Any,
    records: RecordSet,
    report: EventReporter,
    confirm: Callable[[], None],
    texts: list[TimedText],
    half: Any,
) -> Summary:
    def get_node(node_key: str, make: Callable[[], SummaryNode]) -> SummaryNode:
        place = digest_of([job.namespace, node_key])
        if place in records:
            return SummaryNode(**records.meta(place))
        node = make()
        confirm()
        records.publish([Record(key=place, meta=_meta(node))])
        report.item(place, tokens=node.tokens)
        return node

    return Summarizer(job, processor, half).summarize(texts, get_node)
