"""Selects the work of one stage process, and groups its chunks into batches. The selection covers
the whole wave before any of it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.core.checkpoint.models import Model
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Medium, Task, unique
from flows.core.ledger.waves import lengths_of
from flows.core.plan.ladder import Rung
from stages.memory.oom_retry import split_batch
from stages.models.encoding import FRAMES_PER_BATCH
from stages.process.stage_spec import StageSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """The work of one stage process."""

    rung: Rung
    tasks: list[Task]
    """All tasks of the wave that are made in the same variant, finished or not."""
    batches: list[list[Task]]
    total: int
    """Number of items of the wave."""
    missing: int
    """Number of items that have no record yet."""
    tokens: int = 0
    """Estimated tokens of the longest prompt."""


def next_work(job: Job, stage: StageSpec, wave: Sequence[Medium], rung: Rung) -> StageWork | None:
    """Return the next work of a stage: the missing items that share one variant. Return None when
    nothing is missing."""
    ledger, batch_size = job.ledger, job.config.batch_size
    kind = stage.writes
    tasks = [t for t in ledger.tasks(wave) if kind in t.keys and not ledger.has_failed(t)]
    incomplete = [t for t in tasks if not ledger.has(t, stage)]
    if not incomplete:
        return None
    total = len({t[kind] for t in tasks})
    if stage.prompted:
        position = min(
            (t.chunk.index for t in incomplete if t.medium.uses_previous_caption), default=0
        )
        tasks, incomplete = _at_position(tasks, position), _at_position(incomplete, position)
    missing, first = {t[kind] for t in incomplete}, incomplete[0].variant
    # Chunks without sound pass the earlier stages with those that have it.
    same_question = [
        variant
        for variant in ledger.variants
        if variant.same_but_engine(first) or variant.of.get(kind) == first[kind]
    ]
    # All tasks get the keys of one variant, so that batches equal those of an uninterrupted run
    # whichever engine made the captions.
    together = [
        t if t.variant == first else t.in_variant(first)
        for t in tasks
        if t.variant in same_question
    ]
    lengths = lengths_of(ledger, together, stage) if stage.prompted else {}
    pieces = (
        cut(batches_by_length(together, kind, lengths, batch_size), rung.batch)
        if stage.prompted
        else encode_batches_of(job, stage, together, rung)
    )
    # What a stage reads from files does not depend on the batch either.
    alone = not stage.reads or (stage.part == "vision" and not job.model.in_batches)
    return StageWork(
        rung=rung,
        tasks=together,
        batches=[
            # Where bytes depend on the batch, finished chunks stay in it, so that they equal those
            # of an uninterrupted run. Those of an earlier command are left out if their frames are
            # gone.
            [t for t in batch if t[kind] in missing or (ledger.can_make(t, stage) and not alone)]
            for batch in pieces
            if any(t[kind] in missing for t in batch)
        ],
        total=total,
        missing=len(missing),
        tokens=max(lengths.values(), default=0),
    )


def pass_rows(model: Model, stage: StageSpec, task: Task) -> int:
    """Return the rows of the passes in which a stage encodes a chunk; 0: those of its batch. A
    vector is made of each image by itself."""
    if stage.part != "vision":
        return 0
    return model.pass_rows(1 if stage.vectors else task.images)


def encode_batches_of(
    job: Job, stage: StageSpec, tasks: Sequence[Task], rung: Rung
) -> list[list[Task]]:
    """Return the batches of a stage that encodes frames. They hold whole passes."""
    batches: list[list[Task]] = []
    of_rows: dict[int, list[Task]] = {}
    for task in tasks:
        of_rows.setdefault(pass_rows(job.model, stage, task), []).append(task)
    for rows, some in of_rows.items():
        # A chunk of several images may fill passes of vectors by itself.
        least = max(1, rows // max(1, some[0].images) if stage.vectors else rows)
        size, at_once = (
            max(n // least * least, least) for n in (job.config.batch_size, rung.batch)
        )
        mixed = stage.mixes_image_sizes
        batches += cut(
            batches_by_shape(some, stage.writes, size, least=least, any_size=mixed), at_once
        )
    return batches


def _at_position(tasks: Sequence[Task], position: int) -> list[Task]:
    """Return the tasks that can be made together. Of chained media these are the chunks at one
    position; of other media, all chunks."""
    return [t for t in tasks if not t.medium.uses_previous_caption or t.chunk.index == position]


def batches_by_shape(
    tasks: Sequence[Task],
    kind: str,
    batch_size: int,
    frames_per_batch: int = FRAMES_PER_BATCH,
    *,
    least: int = 1,
    any_size: bool = False,
) -> list[list[Task]]:
    """Group chunks of equal shape, in order. With `any_size`, group by the number of frames alone.
    Every chunk of the wave takes part, finished or not. `kind` is the record kind that is made.
    Chunks of many frames make smaller batches, of `least` chunks or more."""
    groups: dict[tuple[str | int, ...], list[Task]] = {}
    for task in unique(tasks, kind):
        groups.setdefault(task.shape[:2] if any_size else task.shape, []).append(task)
    batches = []
    for group in groups.values():
        size = max(least, min(batch_size, frames_per_batch // group[0].images))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def batches_by_length(
    tasks: Sequence[Task], kind: str, lengths: Mapping[str, int], batch_size: int
) -> list[list[Task]]:
    """Group chunks of one media kind by similar length, which keeps padding small. The longest come
    first, so that an item that does not fit is found at once. `lengths` maps the key of the made
    record to tokens."""

    def size(task: Task) -> tuple[int, tuple[str, int, int, int]]:
        return lengths[task[kind]], task.shape

    ordered = sorted(unique(tasks, kind), key=size, reverse=True)
    batches = []
    for media in ("image", "video"):
        group = [task for task in ordered if task.medium.kind == media]
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return batches


def cut(batches: Sequence[list[Task]], size: int) -> list[list[Task]]:
    """Cut each batch into pieces of a smaller size, which depends on what fits."""
    return [list(piece) for batch in batches for piece in split_batch(batch, size)]
