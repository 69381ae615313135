"""Adds rows to an index, removes them, and rewrites an index without removed rows and with full
shards.

One writer works at a time, and it may be killed at any moment without loss. It writes new files
next to the old ones, and one manifest then names all of them at once. If the process is killed
earlier, the index is unchanged. Readers that have the old files open continue to read them.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import HALF, whole_file
from artifacts.disk.locks import lock, open_lock, try_lock, unlock
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.index.manifest import (
    IndexShard,
    Maker,
    Manifest,
    described,
    file_name,
    has_manifest,
    is_of_index,
    read_manifest,
    write_manifest,
)
from artifacts.index.shard import (
    BATCH_ROWS,
    ROW,
    SHARD_ROWS,
    IndexRow,
    OpenShard,
    Positions,
    RowBatch,
    identities_of,
    row_of,
    unit,
    write_shard,
)
from artifacts.index.snapshot import Kept, Snapshot, of_all, open_snapshot
from artifacts.records.vectors import Vectors

log = logging.getLogger(__name__)

LOCK = ".writer"
"""File of an index by which its writer keeps others out; it is empty."""
Added = tuple[Sequence[IndexRow], Vectors]


class IndexWriter:
    """The only process that may change an index at a time. It holds the index's lock."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._sweep()

    def snapshot(self) -> Snapshot:
        """Return the index as it is now."""
        return open_snapshot(self.folder, bits=False)

    def next_number(self) -> int:
        """Return a number for files that none has had."""
        number = self.manifest.files_made
        self.manifest = replace(self.manifest, files_made=number + 1)
        return number

    def publish(self, manifest: Manifest) -> None:
        """Let readers see this, and delete what it no longer names."""
        manifest = replace(manifest, generation=manifest.generation + 1)
        write_manifest(self.folder, manifest)
        self.manifest = manifest
        self._sweep()

    def add(self, batches: Iterable[Added]) -> int:
        """Append rows with their vectors, but those that are there; returns how many were added.
        Each shard is published when it is full, so what a killed writer had is kept."""
        before = self.manifest.rows
        new = self._new(batches)
        while (first := next(new, None)) is not None:
            mean = self.manifest.means.get("pictures")
            shard, centre = write_shard(
                self.folder,
                self.next_number(),
                one_shard(first, new),
                None if mean is None else np.array(mean, np.float32),
            )
            means = {"pictures": tuple(centre.tolist()), **self.manifest.means}
            self.publish(replace(self.manifest, shards=(*self.manifest.shards, shard), means=means))
        return self.manifest.rows - before

    def remove(self, positions: Positions) -> int:
        """Note that the rows at these positions are removed; returns how many were there."""
        deleted = self.snapshot().deleted
        gone = np.union1d(deleted, positions).astype("<i8")
        if len(gone) == len(deleted):
            return 0
        path = self.folder / file_name("deleted", self.next_number())
        with whole_file(path) as file:
            file.write(gone.tobytes())
        self.publish(replace(self.manifest, deleted=described(path), deleted_rows=len(gone)))
        return len(gone) - len(deleted)

    def known(self) -> NDArray[np.uint64]:
        """Return the identities of the rows that are there, ascending."""
        snapshot = self.snapshot()
        return np.sort(of_all(snapshot, ROW)[snapshot.live()])

    def _new(self, batches: Iterable[Added]) -> Iterator[RowBatch]:
        """Yield what of these rows is not in the index yet, nor came before."""
        known = self.known()
        seen: set[int] = set()
        for rows, vectors in _small(batches):
            if vectors.shape != (len(rows), self.manifest.maker.width):
                raise ValueError(f"vectors of shape {vectors.shape} for {len(rows)} rows")
            identities = identities_of(rows)
            new = []
            for at, (number, old) in enumerate(
                zip(identities[ROW].tolist(), within(identities[ROW], known), strict=True)
            ):
                if not old and number not in seen:
                    seen.add(number)
                    new.append(at)
            if new:
                yield RowBatch([rows[at] for at in new], identities[:, new], unit(vectors[new]))

    def _sweep(self) -> None:
        """Delete what earlier writers left and the manifest does not name."""
        named = {file.name for file in self.manifest.files()}
        for path in list(self.folder.iterdir()):
            left = is_of_index(path.name) and path.name not in named
            if left or path.name.startswith(HALF):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: Path, maker: Maker | None = None, made_by: str = "") -> Iterator[IndexWriter]:
    """Wait until no other process writes an index, and yield its writer; `maker` begins one where
    there is none. Raises UsageError where vectors of another maker lie, and without `maker` where
    there is no index."""
    if maker is None:
        read_manifest(folder)
    with _locked(folder):
        manifest = _manifest(folder, maker, made_by)
        with disk_faults(folder):
            yield IndexWriter(folder, manifest)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder and hold its lock. Its file may belong to another user, who may write the
    folder, too."""
    with disk_faults(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        file = open_lock(folder / LOCK)
    try:
        with disk_faults(folder / LOCK):
            if not try_lock(file):
                log.warning("another process is writing %s: waiting for it", folder)
                lock(file)
        yield
    finally:
        unlock(file)


def _manifest(folder: Path, maker: Maker | None, made_by: str) -> Manifest:
    if maker is None or has_manifest(folder):
        manifest = read_manifest(folder)
        if maker is not None:
            refuse_other(folder, manifest.maker, maker)
        return manifest
    if any(is_of_index(path.name) for path in folder.iterdir()):
        raise EnvironmentFault(
            f"{folder} holds files of an index, and no index.json",
            hint="Bring it back, or build the index in another folder",
        )
    manifest = Manifest(maker=maker, made_by=made_by)
    write_manifest(folder, manifest)
    return manifest


def refuse_other_halves(folder: Path, there: Maker, given: Maker) -> None:
    """Raise UsageError when a text read by `given` cannot be compared with the vectors there."""
    if (there.half, there.text_half) != (given.half, given.text_half):
        raise UsageError(
            f"{folder} holds vectors of {there.model}, and the weights, tokenizer or configuration "
            f"of {given.model} are not those that it was made with",
            hint="Give that model, or build an index with this one in another folder",
        )


def refuse_other(folder: Path, there: Maker, given: Maker) -> None:
    """Raise UsageError when vectors of `given` cannot stand in an index beside those there."""
    mine, theirs = ((m.precision, m.width, m.recipe) for m in (given, there))
    if mine[:2] == theirs[:2]:
        refuse_other_halves(folder, there, given)
    if mine != theirs:
        raise UsageError(
            f"{folder} holds vectors of {there.model} in {there.precision}, {there.width} numbers "
            f"each, which {given.model} in {given.precision} does not make",
            hint="Give that model and precision, or another folder",
        )


def _small(batches: Iterable[Added]) -> Iterator[Added]:
    for rows, vectors in batches:
        for at in range(0, len(rows), BATCH_ROWS):
            yield rows[at : at + BATCH_ROWS], vectors[at : at + BATCH_ROWS]


def one_shard(first: RowBatch, rest: Iterator[RowBatch]) -> Iterator[RowBatch]:
    """Yield batches until a shard is full."""
    count = 0
    for batch in chain([first], rest):
        yield batch
        count += len(batch.rows)
        if count >= SHARD_ROWS:
            return


def within(numbers: NDArray[np.uint64], known: NDArray[np.uint64]) -> list[bool]:
    """Return of each number whether it is among `known`, which ascend."""
    if not len(known):
        return [False] * len(numbers)
    at = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    flags: list[bool] = (known[at] == numbers).tolist()
    return flags


MOST_SMALL = 32
"""Maximum number of shards that are not full; `add` merges them beyond that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What rewriting an index saved."""

    rows_dropped: int
    shards_before: int
    shards: int
    bytes_freed: int


def compact(writer: IndexWriter) -> Compacted:
    """Drop removed rows and merge shards that are not full. The rows keep their order. A full shard
    without removed rows is not rewritten."""
    before = writer.manifest
    snapshot = writer.snapshot()
    mean = np.array(before.means.get("pictures", ()), np.float32)
    is_live = snapshot.live()
    full_shards = [
        s.rows >= SHARD_ROWS and bool(is_live[s.start : s.start + s.rows].all())
        for s in snapshot.shards
    ]
    if all(full_shards) or (len(full_shards) == 1 and not before.deleted_rows):
        return Compacted(
            rows_dropped=0, shards_before=len(full_shards), shards=len(full_shards), bytes_freed=0
        )
    shards: list[IndexShard] = []
    for is_whole, run in _runs(snapshot, full_shards):
        if is_whole:
            shards += [before.shards[number] for number in run]
            continue
        batches = _kept_of([snapshot.shards[number] for number in run], is_live)
        for first in batches:
            shard, _ = write_shard(
                writer.folder, writer.next_number(), one_shard(first, batches), mean
            )
            shards.append(shard)
    writer.publish(replace(writer.manifest, shards=tuple(shards), deleted=None, deleted_rows=0))
    sizes = [sum(file.bytes for file in manifest.files()) for manifest in (before, writer.manifest)]
    return Compacted(
        rows_dropped=before.deleted_rows,
        shards_before=len(full_shards),
        shards=len(shards),
        bytes_freed=sizes[0] - sizes[1],
    )


def merge_small(writer: IndexWriter) -> None:
    """Compact an index that has many small shards: each search opens them all."""
    small = sum(shard.rows < SHARD_ROWS for shard in writer.manifest.shards)
    if small > MOST_SMALL:
        compact(writer)


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
