"""Decides what one process of a stage computes, and which chunks form a batch. The decision covers
the whole wave, and is made before any of it is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.ledger.ledger import Ledger
from flows.ledger.tasks import Medium, Task, unique
from flows.ledger.waves import lengths_of
from flows.planning.rungs import Rung
from stages.memory.shrinking import split_batch
from stages.models.encoding import FRAMES_A_BATCH
from stages.process.stage import StageSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """The work of one process of a stage."""

    rung: Rung
    tasks: list[Task]
    """All tasks of the wave that are made in the same variant, done or not."""
    batches: list[list[Task]]
    total: int
    """Number of items of the wave."""
    missing: int
    """Number of those that are not there yet."""
    tokens: int = 0
    """Tokens of the longest prompt, about."""


def work_of(
    ledger: Ledger, stage: StageSpec, wave: Sequence[Medium], rung: Rung, batch_size: int
) -> StageWork | None:
    """Return the next work of a stage: of all that is missing, what is made in one variant. Returns
    None when nothing is missing."""
    made, read = stage.writes, ledger[stage.reads]
    tasks = [t for t in ledger.tasks(wave) if not ledger.lost(t)]
    lacking = [t for t in tasks if not ledger.has(t, stage)]
    if not lacking:
        return None
    total = len({t[made] for t in tasks})
    if stage.prompted:
        link = min((t.chunk.index for t in lacking if t.medium.chained), default=0)
        tasks, lacking = _of_link(tasks, link), _of_link(lacking, link)
    missing, first = {t[made] for t in lacking}, lacking[0].namespaces
    alike = [variant for variant in ledger.variants if variant.same_but_engine(first)]
    # Under one variant, so that batches are those of an undisturbed run whoever made the captions.
    together = [
        t if t.namespaces == first else ledger.again(t, first)
        for t in tasks
        if t.namespaces in alike
    ]
    lengths = lengths_of(ledger, together, stage) if stage.prompted else {}
    whole = (
        batches_by_length(together, made, lengths, batch_size)
        if stage.prompted
        else batches_by_shape(together, made, batch_size, any_size=stage.mixes_image_sizes)
    )
    return StageWork(
        rung=rung,
        tasks=together,
        batches=[
            # Whole, so that the bytes are those of an undisturbed run; without what an earlier
            # command finished, whose frames are gone.
            [t for t in batch if t[made] in missing or t[stage.reads] in read]
            for batch in cut(whole, rung.batch)
            if any(t[made] in missing for t in batch)
        ],
        total=total,
        missing=len(missing),
        tokens=max(lengths.values(), default=0),
    )


def _of_link(tasks: Sequence[Task], link: int) -> list[Task]:
    """Return the tasks that can be made together: of media whose chunks are asked one after the
    other, all chunks of one number, and of others all."""
    return [t for t in tasks if not t.medium.chained or t.chunk.index == link]


def batches_by_shape(
    tasks: Sequence[Task],
    kind: str,
    batch_size: int,
    frames_a_batch: int = FRAMES_A_BATCH,
    *,
    any_size: bool = False,
) -> list[list[Task]]:
    """Group chunks of one shape, or with `any_size` of as many frames, in order; every chunk of the
    wave takes part, done or not. `kind` is that of the records that are made."""
    groups: dict[tuple[str | int, ...], list[Task]] = {}
    for task in unique(tasks, kind):
        groups.setdefault(task.shape[:2] if any_size else task.shape, []).append(task)
    batches = []
    for group in groups.values():
        size = max(1, min(batch_size, frames_a_batch // group[0].pictures))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def batches_by_length(
    tasks: Sequence[Task], kind: str, lengths: Mapping[str, int], batch_size: int
) -> list[list[Task]]:
    """Group chunks of one kind of media that are alike in length, so that little is padded. The
    longest come first, so that what does not fit is found out at once. `lengths` is by the key of
    what is made."""

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
