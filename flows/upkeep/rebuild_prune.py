"""Removes what a job's rebuilds made and nothing refers to any more. It never removes what a
recorded or a running job needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.packs import RecordSet
from artifacts.record_union import RecordUnion
from flows.job.prepare import Job
from flows.ledger.ledger import Ledger
from flows.ledger.namespaces import Namespaces
from flows.ledger.tasks import Medium
from flows.machine.leases import RunningJob
from flows.pipelines import KEPT, Pipeline
from flows.upkeep.rebuild_record import Reach, RebuildRecord, other_records


@dataclass(kw_only=True, slots=True)
class Pruned:
    """The records removed, or to be removed."""

    records: int = 0
    bytes: int = 0
    left: tuple[Reach, ...] = ()
    """Features that could not be removed now, because a running job may need them."""


def prune(
    job: Job, name: str, now: RebuildRecord, running: Sequence[RunningJob], *, dry_run: bool
) -> Pruned:
    """Remove what the rebuilds of the job called `name` made and `now` does not refer to."""
    records = [now, *other_records(job.store, name)]
    held = frozenset[str]().union(*(other.namespaces for other in running))
    made = Pruned()
    for reach in now.past:
        if reach.features in held:
            made.left += (reach,)
            continue
        loose = reach.without(
            content
            for record in records
            if record.features == reach.features
            for content in record.reach.contents
        )
        for pipeline in KEPT:  # a namespace is of one of them; in the others nothing is found
            frames, features = pipeline
            tasks = _ledger(job, loose, pipeline)
            chunks = tasks.tasks(_media(loose))
            keys = {task[features.writes] for task in chunks}
            _remove(tasks[features.writes], keys, made, dry_run)
            _remove(tasks.refused[features.name], keys, made, dry_run)
        if reach.frames in held:
            continue
        looked_at = {
            digest
            for record in records
            if record.frames == reach.frames
            for digest, _ in record.reach.contents
        }
        keys = {task[frames.writes] for task in chunks if task.medium.digest not in looked_at}
        _remove(tasks[frames.writes], keys, made, dry_run)
    return made


def _ledger(job: Job, reach: Reach, pipeline: Pipeline) -> Ledger:
    frames, features = (stage.writes for stage in pipeline)
    of_prompts = [features] if any(prompt for _, prompt in reach.contents) else []
    of = {frames: reach.frames, features: reach.features}
    return Ledger(job.store, pipeline, Namespaces(of=of, prompted=frozenset(of_prompts)))


def _media(reach: Reach) -> list[Medium]:
    return [Medium(digest=d, path="", kind="", prompt=p) for d, p in sorted(reach.contents)]


def _remove(
    record_set: RecordSet | RecordUnion, keys: set[str], made: Pruned, dry_run: bool
) -> None:
    found = [key for key in keys if key in record_set]
    made.records += len(found)
    made.bytes += sum(record_set.place(key).length for key in found)
    if not dry_run:
        record_set.remove(found)
