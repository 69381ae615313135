"""Groups the missing captions of a job into batches for the engine."""

from collections.abc import Mapping, Sequence

from stages.decode.job import DecodeItem
from stages.memory.oom_retry import split_batch

Batch = list[DecodeItem]


def rebatch(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Split the batches to a maximum size (0: unchanged)."""
    return [[*piece] for batch in batches for piece in split_batch(batch, size or len(batch))]


def by_chunk(batches: Sequence[Batch]) -> list[Batch]:
    """Return batches of the same size in which requests about the same chunk are adjacent."""
    by_features: dict[str, Batch] = {}
    for item in (item for batch in batches for item in batch):
        by_features.setdefault(item.features, []).append(item)
    whole = [item for items in by_features.values() for item in items]
    return rebatch([whole], max(map(len, batches), default=0))


def longest_first(batches: Sequence[Batch], previous_lengths: Mapping[str, int]) -> list[Batch]:
    """Return batches of the same size, sorted by previous caption length, longest first. Items of
    unknown length count as longest. So the last sequences are short, and few slots stay empty at
    the end."""
    items = [item for batch in batches for item in batch]
    if not any(item.key in previous_lengths for item in items):
        return [*batches]
    longest = max(previous_lengths.values())
    items.sort(key=lambda item: -previous_lengths.get(item.key, longest))
    return rebatch([items], max(map(len, batches)))
