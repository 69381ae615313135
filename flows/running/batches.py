"""Which chunks are computed together: decided by the whole wave, before any of it is; knows neither
what is done nor how much fits."""

from collections.abc import Mapping, Sequence

from flows.job.tasks import Task, unique
from stages.encode import FRAMES_A_BATCH
from stages.memory.shrinking import pieces


def batches_by_shape(
    tasks: Sequence[Task], kind: str, batch_size: int, frames_a_batch: int = FRAMES_A_BATCH
) -> list[list[Task]]:
    """Chunks of one shape together, in order; every chunk of the wave takes part, done or not.
    `kind` is that of the records that are made."""
    groups: dict[tuple[str, int, int, int], list[Task]] = {}
    for task in unique(tasks, kind):
        groups.setdefault(task.shape, []).append(task)
    batches = []
    for (_, frames, _, _), group in groups.items():
        size = max(1, min(batch_size, frames_a_batch // frames))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def batches_by_length(
    tasks: Sequence[Task], kind: str, lengths: Mapping[str, int], batch_size: int
) -> list[list[Task]]:
    """Chunks of one kind of media together, alike in length, so that little is padded; the longest
    first, so that what does not fit is found out at once. `lengths` is by the key of what is
    made."""

    def size(task: Task) -> tuple[int, tuple[str, int, int, int]]:
        return lengths[task[kind]], task.shape

    ordered = sorted(unique(tasks, kind), key=size, reverse=True)
    batches = []
    for media in ("image", "video"):
        group = [task for task in ordered if task.medium.kind == media]
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return batches


def cut(batches: Sequence[list[Task]], size: int) -> list[list[Task]]:
    """Each batch in pieces of a smaller size, which depends on what fits."""
    return [list(piece) for batch in batches for piece in pieces(batch, size)]
