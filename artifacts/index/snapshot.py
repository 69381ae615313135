"""Opens one version of an index for reading while writers continue."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import EnvironmentFault
from artifacts.index.manifest import IndexFile, Manifest, read_manifest
from artifacts.index.shard import (
    BATCH_ROWS,
    Halves,
    IndexRow,
    OpenShard,
    Positions,
    damaged_file,
    open_shard,
    rows_at,
    times_at,
)
from artifacts.records.vectors import Vectors
from artifacts.texts.tables import text_stored

if TYPE_CHECKING:
    from pyarrow import RecordBatch

TRIES = 5
"""How often an index is opened anew whose files go away meanwhile: each time a writer merged it."""
Kept = NDArray[np.bool_]
"""Shape (rows): whether a row counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All rows of an index at the time it was opened. A row is identified by its position."""

    folder: Path
    manifest: Manifest
    shards: tuple[OpenShard, ...]
    deleted: Positions
    """Positions of removed rows, ascending."""
    texts: Vectors | None
    """Vectors of some texts, by which it is measured; None where there are none yet."""
    reading: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held while rows are read: two threads in one file of pyarrow's end the process by SIGSEGV."""

    @property
    def rows(self) -> int:
        """Return the number of positions, those of removed rows among them."""
        return self.manifest.rows

    def live(self) -> Kept:
        """Return which rows were not removed."""
        is_live = np.ones(self.rows, np.bool_)
        is_live[self.deleted] = False
        return is_live

    def identities_at(self, plane: int, positions: Positions) -> NDArray[np.uint64]:
        """Return the identities of the rows at these positions."""
        identities = np.empty(len(positions), np.uint64)
        for shard, inside, places in self._by_shard(positions):
            identities[places] = shard.identities[plane][inside]
        return identities

    def positions_of(self, plane: int, identity: int) -> Positions:
        """Return where rows of this identity are that were not removed, ascending."""
        by_shard = [
            np.flatnonzero(shard.identities[plane][:] == np.uint64(identity)) + shard.start
            for shard in self.shards
        ]
        every = np.concatenate(by_shard) if by_shard else np.empty(0, np.int64)
        return np.setdiff1d(every, self.deleted, assume_unique=True)

    def vectors(self, positions: Positions) -> Vectors:
        """Return the vectors at these positions in 32 bit, shape (positions, width)."""
        return self.halves(positions).astype(np.float32)

    def halves(self, positions: Positions) -> Halves:
        """Return the vectors at these positions as they are kept, shape (positions, width)."""
        vectors = np.empty((len(positions), self.manifest.maker.width), np.float16)
        for shard, inside, places in self._by_shard(positions):
            vectors[places] = shard.vectors[inside]
        return vectors

    def read(self, positions: Positions) -> list[IndexRow]:
        """Return the rows at these positions. Raises EnvironmentFault for a damaged file."""
        by_place: dict[int, IndexRow] = {}
        for shard, inside, places in self._by_shard(positions):
            with self._reading(shard):
                rows = rows_at(shard.parquet, inside.tolist())
            by_place.update(zip(places.tolist(), rows, strict=True))
        return [by_place[at] for at in range(len(positions))]

    def times(self, positions: Positions) -> NDArray[np.float64]:
        """Return the times at these positions in seconds, of pictures NaN. Raises EnvironmentFault
        for a damaged file."""
        times = np.empty(len(positions))
        for shard, inside, places in self._by_shard(positions):
            with self._reading(shard):
                times[places] = times_at(shard.parquet, inside)
        return times

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, "RecordBatch"]]:
        """Yield the first position and some columns of every row, removed ones among them, in
        batches. Raises EnvironmentFault for a damaged file."""
        for shard in self.shards:
            start = shard.start
            with self._reading(shard):
                for batch in shard.parquet.iter_batches(
                    BATCH_ROWS, columns=list(columns), use_threads=False
                ):
                    yield start, batch
                    start += len(batch)

    @contextlib.contextmanager
    def _reading(self, shard: OpenShard) -> Iterator[None]:
        """Keep other threads from the rows, and tell which file it is that cannot be read."""
        try:
            with self.reading:
                yield
        except (OSError, ValueError, IndexError) as error:
            raise damaged_file(shard.paths["rows"], "is damaged") from error

    def vectors_file(self, position: Positions) -> Path:
        """Return the file that holds the vector at a position, of shape (1,)."""
        shard, _, _ = next(self._by_shard(position))
        return shard.paths["embeddings"]

    def _by_shard(self, positions: Positions) -> Iterator[tuple[OpenShard, Positions, Positions]]:
        """Yield each shard that positions lie in, those inside it, and their places among all."""
        starts = np.array([shard.start for shard in self.shards], np.int64)
        of = np.searchsorted(starts, positions, side="right") - 1
        for number in np.unique(of):
            places = np.flatnonzero(of == number)
            yield self.shards[number], positions[places] - starts[number], places


def open_snapshot(folder: Path, *, bits: bool = True) -> Snapshot:
    """Open the newest generation; without `bits`, which can be made again, for who writes. Raises
    UsageError where there is no index that can be read, and EnvironmentFault for a damaged one."""
    folder = Path(os.path.realpath(folder))  # a link may be led to another index meanwhile
    manifest = read_manifest(folder)
    for _ in range(TRIES):
        opened: Snapshot | None = None
        fault: EnvironmentFault | None = None
        try:
            opened = _opened(folder, manifest, bits)
        except FileNotFoundError as error:
            fault = damaged_file(Path(error.filename or folder), "is gone")
        except EnvironmentFault as error:
            fault = error
        newer = read_manifest(folder)
        # An index that is built anew has files of the same names: they may be of the new one.
        if opened is not None and {*manifest.files()} <= {*newer.files()}:
            return opened
        if fault is not None and newer == manifest:
            raise fault
        manifest = newer
    raise EnvironmentFault(
        f"{folder} was written anew each time it was opened", hint="Run the same command again"
    )


def _opened(folder: Path, manifest: Manifest, bits: bool) -> Snapshot:
    shards: list[OpenShard] = []
    start = 0
    for shard in manifest.shards:
        shards.append(open_shard(folder, shard, start, manifest.maker.width, bits=bits))
        start += shard.rows
    return Snapshot(
        folder=folder,
        manifest=manifest,
        shards=tuple(shards),
        deleted=_deleted(folder, manifest.deleted, manifest.deleted_rows),
        texts=_texts(folder, manifest.texts, manifest.maker.width),
    )


def _deleted(folder: Path, file: IndexFile | None, count: int) -> Positions:
    if file is None:
        return np.empty(0, np.int64)
    path = folder / file.name
    positions = np.fromfile(path, "<i8")
    if len(positions) != count:
        raise damaged_file(path, f"names {len(positions):,} removed rows of {count:,}")
    return positions


def _texts(folder: Path, file: IndexFile | None, width: int) -> Vectors | None:
    if file is None:
        return None
    vectors = np.fromfile(folder / file.name, "<f4")
    if vectors.nbytes != file.bytes or len(vectors) % width:
        raise damaged_file(folder / file.name, f"has {vectors.nbytes:,} bytes of {file.bytes:,}")
    return np.asarray(vectors, np.float32).reshape(-1, width)


def of_all(snapshot: Snapshot, plane: int) -> NDArray[np.uint64]:
    """Return the identities of all rows, shape (rows): ROW, CONTENT, PICTURE or MEDIUM."""
    parts = [shard.identities[plane][:] for shard in snapshot.shards]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def paths_of(folder: Path) -> Iterator[str]:
    """Yield each file that an index has rows of, once."""
    snapshot = open_snapshot(folder, bits=False)
    live, seen = snapshot.live(), set[str]()
    for start, batch in snapshot.batches(["path"]):
        is_live = live[start : start + len(batch)]
        for path in batch.column("path").filter(is_live).unique().to_pylist():
            if path not in seen:
                seen.add(path)
                yield text_stored(path)
