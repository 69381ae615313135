"""Notes how long stages take per item, and estimates from that the remaining time of a job.

A note belongs to a cache namespace, which stands for model, precision and sampling, and to a GPU or
CPU. The newest one counts.
"""

import contextlib
import time
from collections.abc import Callable, Sequence

from artifacts.digests import digest_of
from artifacts.errors import EnvironmentFault
from artifacts.records.packs import Record, RecordSet
from flows.core.console.lines import duration
from flows.core.job.prepare import Job
from flows.core.plan.sizes import Estimate
from stages.process.checks import hardware
from stages.process.stage_spec import StageSpec

KIND = "seconds"
"""Kind of the notes in a store."""
UNKNOWN = "unknown before the first batch"
Times = tuple[dict[str, float | None] | None, str]
"""Stage → seconds, None if unknown; None without media. And the same as text."""


def note_seconds(job: Job, stage: StageSpec, items: int, seconds: float) -> None:
    """Note that a stage made so many items in this time, its start included."""
    if not items:
        return
    with contextlib.suppress(EnvironmentFault):  # a note must not end a run
        notes, key = _notes(job, stage), f"{_card(job)} {time.time_ns()}"
        notes.publish([Record(key=key, meta={"seconds": seconds / items})])
        notes.drop(set(_of_card(job, notes)) - {key})


def seconds_an_item(job: Job, stage: StageSpec) -> float | None:
    """Return how long an item took last time; None if that is unknown."""
    with contextlib.suppress(EnvironmentFault):
        notes = _notes(job, stage)
        if keys := _of_card(job, notes):
            return float(notes.meta(keys[-1])["seconds"])
    return None


def times_of(
    job: Job, estimates: Sequence[Estimate], processes: Callable[[str], int] = lambda stage: 1
) -> Times:
    """Return the remaining time of a job. `estimates`: one of each medium. `processes`: number of
    processes that share a stage."""
    remaining = remaining_items(job, estimates)
    seconds = dict[str, float | None]()
    for stage in job.stages:
        if not stage.of_media or not stage.writes:
            seconds[stage.name] = None
        elif not remaining[stage.name]:
            seconds[stage.name] = 0.0
        else:
            an_item = seconds_an_item(job, stage)
            seconds[stage.name] = (
                None if an_item is None else an_item * remaining[stage.name] / processes(stage.name)
            )
    of_media = [seconds[stage.name] for stage in job.stages if stage.of_media and stage.writes]
    if None in of_media and not any(of_media):
        return seconds, UNKNOWN
    texts = (
        f"{name} {'unknown' if s is None else duration(s)}" for name, s in seconds.items() if s != 0
    )
    return seconds, ", ".join(texts) or "no time: nothing is left to make"


def remaining_items(job: Job, estimates: Sequence[Estimate]) -> dict[str, int]:
    """Return stage → number of chunks without its output. `estimates`: one of each medium."""
    ledger = job.ledger
    uncut = [e for m, e in zip(job.media, estimates, strict=True) if ledger.media_index(m) is None]
    tasks = [task for task in ledger.tasks(job.media) if not ledger.has_failed(task)]

    def remaining(stage: StageSpec) -> int:
        of_prompt = stage.writes in ledger.variant.prompted
        uncounted = sum(e.chunks for e in uncut if of_prompt or not e.reuses_features)
        return uncounted + len({t[stage.writes] for t in tasks if not ledger.has(t, stage)})

    first, *others = job.pipeline
    to_cut = sum(estimate.chunks for estimate in uncut if not estimate.reuses_features)
    return {first.name: to_cut, **{stage.name: remaining(stage) for stage in others}}


def _notes(job: Job, stage: StageSpec) -> RecordSet:
    namespace = job.ledger.variant[stage.writes]
    return RecordSet(job.store, KIND, digest_of([KIND, stage.name, namespace]))


def _card(job: Job) -> str:
    """Return what computes: the model of the GPU or of the CPU."""
    return digest_of(hardware(job.device))[:16]


def _of_card(job: Job, notes: RecordSet) -> list[str]:
    """Return the keys of the notes of this GPU or CPU, oldest first."""
    card = _card(job)
    return sorted(key for key in notes.keys() if key.startswith(card))  # noqa: SIM118
