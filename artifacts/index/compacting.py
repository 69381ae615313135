"""Rewrites an index without removed rows and with full shards.

New files are written next to the old ones, and one manifest then names all of them at once. If the
process is killed earlier, the index is unchanged. Readers that have the old files open continue to
read them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from artifacts.index.manifest import IndexShard
from artifacts.index.rows import row_of
from artifacts.index.shard import BATCH_ROWS, SHARD_ROWS, OpenShard, RowBatch, write_shard
from artifacts.index.snapshot import Kept, Snapshot
from artifacts.index.writing import IndexWriter, one_shard

MOST_SMALL = 32
"""Shards that are not full, of which an index may have so many before `add` merges them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What rewriting an index saved."""

    rows_dropped: int
    shards_before: int
    shards: int
    bytes_freed: int


def compact(writer: IndexWriter) -> Compacted:
    """Drop removed rows and merge shards that are not full. The rest stays in its order, and full
    shards of which nothing was removed stay as they are."""
    before = writer.manifest
    snapshot = writer.snapshot()
    mean = np.array(before.means.get("pictures", ()), np.float32)
    kept = snapshot.live()
    whole = [_is_whole(shard, kept) for shard in snapshot.shards]
    if all(whole) or (len(whole) == 1 and not before.deleted_rows):
        return Compacted(rows_dropped=0, shards_before=len(whole), shards=len(whole), bytes_freed=0)
    shards: list[IndexShard] = []
    for is_whole, run in _runs(snapshot, whole):
        if is_whole:
            shards += [before.shards[number] for number in run]
            continue
        batches = _kept_of([snapshot.shards[number] for number in run], kept)
        for first in batches:
            shard, _ = write_shard(
                writer.folder, writer.next_number(), one_shard(first, batches), mean
            )
            shards.append(shard)
    writer.publish(replace(writer.manifest, shards=tuple(shards), deleted=None, deleted_rows=0))
    sizes = [sum(file.bytes for file in manifest.files()) for manifest in (before, writer.manifest)]
    return Compacted(
        rows_dropped=before.deleted_rows,
        shards_before=len(whole),
        shards=len(shards),
        bytes_freed=sizes[0] - sizes[1],
    )


def merge_small(writer: IndexWriter) -> None:
    """Compact an index that has many small shards: each search opens them all."""
    small = sum(shard.rows < SHARD_ROWS for shard in writer.manifest.shards)
    if small > MOST_SMALL:
        compact(writer)


def _is_whole(shard: OpenShard, kept: Kept) -> bool:
    inside = kept[shard.start : shard.start + shard.rows]
    return shard.rows >= SHARD_ROWS and bool(inside.all())


def _runs(snapshot: Snapshot, whole: Sequence[bool]) -> Iterator[tuple[bool, list[int]]]:
    """Yield numbers of neighbouring shards that are alike."""
    run: list[int] = []
    for number in range(len(snapshot.shards)):
        if run and whole[number] != whole[run[-1]]:
            yield whole[run[-1]], run
            run = []
        run.append(number)
    if run:
        yield whole[run[-1]], run


def _kept_of(shards: Sequence[OpenShard], kept: Kept) -> Iterator[RowBatch]:
    """Yield the rows of these shards that count, as they were written."""
    for shard in shards:
        tables = shard.parquet.iter_batches(BATCH_ROWS, use_threads=False)
        at = 0
        for table in tables:
            inside = np.flatnonzero(kept[shard.start + at :][: len(table)])
            if len(inside):
                rows = [row_of(values) for values in table.take(inside).to_pylist()]
                places = inside + at
                identities = np.stack([plane[places] for plane in shard.identities])
                yield RowBatch(rows, identities, shard.vectors[places])
            at += len(table)
