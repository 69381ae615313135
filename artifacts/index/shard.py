"""Writes and opens the files of one shard."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from artifacts.files import whole_file
from artifacts.index.bits import Words, bits_of, words_of
from artifacts.index.manifest import SHARD_FILES, IndexFile, IndexShard, described, file_name
from artifacts.index.rows import IDENTITIES, Identities, IndexRow, RowsFile, open_rows
from artifacts.index.stored_rows import (
    StoredRows,
    damaged_file,
    read_whole,
    stored,
    stored_planes,
)
from artifacts.vectors import Vectors

SHARD_ROWS = 1 << 16
"""A shard of so many rows is full: 100 MB of 768 numbers each."""
BATCH_ROWS = 1 << 12
"""Rows whose vectors are in memory at once in 32 bit."""
Halves = NDArray[np.float16]
"""Vectors of length one, as they are kept; shape (rows, width)."""


class RowBatch(NamedTuple):
    """Rows that are to be written into a shard."""

    rows: list[IndexRow]
    identities: Identities
    vectors: Halves


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenShard:
    """The open files of one shard. Rows are read on demand, bits once."""

    start: int
    """Position of its first row among all of the index."""
    rows: int
    vectors: StoredRows
    bits: Words | None
    """Shape (words, rows); None where they were not asked for."""
    identities: Sequence[StoredRows]
    """One of each sort."""
    parquet: Any
    """Its rows."""


def unit(vectors: Vectors) -> Halves:
    """Return the directions of vectors. One that has none, or is of no numbers, becomes zeros,
    which are near to nothing."""
    wide = np.asarray(vectors, np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    usable = np.isfinite(lengths) & (lengths > 0)
    scaled = np.divide(wide, lengths, out=np.zeros_like(wide), where=usable)
    found: Halves = scaled.astype(np.float16)
    return found


def blocks_of(vectors: StoredRows) -> Iterator[tuple[int, Vectors]]:
    """Yield the first row and the vectors of each block of a shard, in 32 bit."""
    for start in range(0, len(vectors), BATCH_ROWS):
        yield start, vectors[start : start + BATCH_ROWS].astype(np.float32)


def write_shard(
    folder: Path, number: int, batches: Iterable[RowBatch], mean: Vectors | None
) -> tuple[IndexShard, Vectors]:
    """Write the files of one shard. Returns it with the mean that its bits are taken from, which is
    its own where none is given. Raises EnvironmentFault, and then none of its files counts."""
    names = {sort: folder / file_name(sort, number) for sort in SHARD_FILES}
    identities: list[Identities] = []
    with contextlib.ExitStack() as stack:
        vectors = stack.enter_context(whole_file(names["embeddings"]))
        rows = RowsFile(names["rows"], stack)
        for batch in batches:
            vectors.write(np.ascontiguousarray(batch.vectors, "<f2").data)
            rows.add(batch.rows)
            identities.append(batch.identities)
        rows.flush()
    with whole_file(names["identities"]) as file:
        file.write(np.concatenate(identities, axis=1).astype("<u8").tobytes())
    count = sum(found.shape[1] for found in identities)
    width = names["embeddings"].stat().st_size // 2 // count
    written = stored(names["embeddings"], "<f2", count, width)
    centre = mean_of([written]) if mean is None else mean
    files = {sort: described(path) for sort, path in names.items() if sort != "bits"}
    files["bits"] = write_bits(names["bits"], written, centre)
    return IndexShard(rows=count, files=files), centre


def write_bits(path: Path, vectors: StoredRows, mean: Vectors) -> IndexFile:
    """Write the bits of a shard's vectors. Raises EnvironmentFault."""
    count, width = len(vectors), vectors.width
    bits = np.empty((words_of(width), count), np.uint64)
    for start, block in blocks_of(vectors):
        bits[:, start : start + len(block)] = bits_of(block - mean)
    with whole_file(path) as file:
        file.write(bits.astype("<u8", copy=False).data)
    return described(path)


def mean_of(parts: Iterable[StoredRows]) -> Vectors:
    """Return the mean of all vectors of these shards, a block in memory at a time."""
    total, count = np.float64(0), 0
    for vectors in parts:
        for _, block in blocks_of(vectors):
            total = total + block.sum(axis=0, dtype=np.float64)
            count += len(block)
    return np.asarray(total / max(count, 1), np.float32)


def with_bits(shard: IndexShard, bits: IndexFile) -> IndexShard:
    """Return a shard whose bits lie in another file."""
    return replace(shard, files={**shard.files, "bits": bits})


def open_shard(folder: Path, shard: IndexShard, start: int, width: int, *, bits: bool) -> OpenShard:
    """Open a shard whose first row is at this position, its `bits` only when asked for. Raises
    FileNotFoundError, and EnvironmentFault for a file that has not the size it was written with."""
    for file in (file for sort, file in shard.files.items() if bits or sort != "bits"):
        found = (folder / file.name).stat().st_size
        if found != file.bytes:
            raise damaged_file(folder / file.name, f"has {found:,} bytes of {file.bytes:,}")
    paths = {sort: folder / file.name for sort, file in shard.files.items()}
    try:
        parquet = open_rows(paths["rows"])
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise damaged_file(paths["rows"], "cannot be read") from error
    return OpenShard(
        start=start,
        rows=shard.rows,
        vectors=stored(paths["embeddings"], "<f2", shard.rows, width),
        bits=read_whole(paths["bits"], "<u8", (words_of(width), shard.rows)) if bits else None,
        identities=stored_planes(paths["identities"], "<u8", IDENTITIES, shard.rows),
        parquet=parquet,
    )
