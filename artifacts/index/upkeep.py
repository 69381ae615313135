"""Measures the recall of an index's two-step search, and selects how it searches.

Bits are computed relative to the mean of the image vectors, and the mean moves as images are added.
When an index has doubled since the last measurement, the mean and the bits are recomputed. Both are
then compared with the exact scan on the index's own vectors.

Checks every byte of an index, and reports damage and its repair. Changes nothing.

Finds index rows by file, by folder or by key.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import UsageError
from artifacts.files import whole_file
from artifacts.gone_files import GoneFiles
from artifacts.index.manifest import (
    IndexFile,
    IndexShard,
    Manifest,
    SearchWay,
    described,
    file_name,
    read_manifest,
)
from artifacts.index.search import EXACT, LEAST_RECALL, Query, Searcher, Sort, direction
from artifacts.index.shard import (
    COLUMNS,
    SHARD_ROWS,
    Positions,
    mean_of,
    open_rows,
    with_bits,
    write_bits,
)
from artifacts.index.snapshot import Kept, Snapshot, open_snapshot
from artifacts.index.writing import IndexWriter
from artifacts.keys import hash_file
from artifacts.tables import stored_text, text_stored
from artifacts.vectors import Vectors

NEAREST = 10
"""Recall is the share of so many nearest."""
QUERIES = 64
"""Rows of the index that are looked for."""
WIDTHS = (1000, 2000, 4000, 8000)
"""Numbers of candidates that are tried, until one is enough."""
FEW_ROWS = 10_000
"""An index of fewer rows is scanned exactly: 20 ms."""
GROWN = 2
"""An index is measured again when it has so many times the rows it had."""
TOGETHER = 8
"""Queries whose exact scores are in memory at once: 32 MB of a million rows."""


def is_due(manifest: Manifest) -> bool:
    """Return whether an index is to be measured: never done, or grown since."""
    return manifest.live_rows > 0 and manifest.rows >= GROWN * manifest.measured_rows


def note_texts(writer: IndexWriter, texts: Vectors) -> None:
    """Keep vectors of some texts, by which the index is measured from now on."""
    path = writer.folder / file_name("texts", writer.next_number())
    with whole_file(path) as file:
        file.write(np.ascontiguousarray(texts, "<f4").data)
    mean = np.mean([direction(text) for text in texts], axis=0)
    means = {**writer.manifest.means, "texts": tuple(mean.tolist())}
    writer.publish(replace(writer.manifest, texts=described(path), means=means))


def measure(writer: IndexWriter) -> Manifest:
    """Take the mean and the bits anew, and note how well pictures and texts find. Returns the
    generation published."""
    snapshot = writer.snapshot()
    if not snapshot.shards:
        return writer.manifest
    centre = mean_of(shard.vectors for shard in snapshot.shards)
    shards: list[IndexShard] = []
    for shard, opened in zip(writer.manifest.shards, snapshot.shards, strict=True):
        path = writer.folder / file_name("bits", writer.next_number())
        shards.append(with_bits(shard, write_bits(path, opened.vectors, centre)))
    means = {**writer.manifest.means, "pictures": tuple(centre.tolist())}
    # Until it is known how well these bits find, searches are exact.
    unmeasured = replace(writer.manifest, measured={}, measured_rows=0)
    writer.publish(replace(unmeasured, shards=tuple(shards), means=means))
    searcher = Searcher(open_snapshot(writer.folder))
    measured = {"pictures": recall_of(searcher, _sampled(searcher), "pictures")}
    if searcher.snapshot.texts is not None:
        measured["texts"] = recall_of(searcher, list(searcher.snapshot.texts), "texts")
    writer.publish(replace(writer.manifest, measured=measured, measured_rows=writer.manifest.rows))
    return writer.manifest


def recall_of(searcher: Searcher, queries: Sequence[NDArray[np.float32]], sort: Sort) -> SearchWay:
    """Return the shortest way by which these queries find enough; where none does, the best that
    was tried, without candidates."""
    kept = searcher.distinct(searcher.snapshot.live())
    if int(kept.sum()) < FEW_ROWS:
        return EXACT
    limits = list(_exact_limits(searcher, queries, np.flatnonzero(kept)))
    best = replace(EXACT, queries=len(queries), recall=0.0)
    for candidates in WIDTHS:
        for centre in dict.fromkeys((sort, "pictures")):
            way = replace(best, recall=1.0, candidates=candidates, centre=centre)
            found = [
                _share(searcher, Query(vector=vector, sort=sort), way, limit)
                for vector, limit in zip(queries, limits, strict=True)
            ]
            recall = float(np.mean(found))
            if recall >= LEAST_RECALL:
                return replace(way, recall=recall)
            best = replace(best, recall=max(recall, best.recall))
    return best


def _share(searcher: Searcher, query: Query, way: SearchWay, limit: float) -> float:
    """Return the share of the nearest that are found. What is as near as the last of them counts:
    between equals there is no order."""
    found = searcher.find(query, NEAREST, way, parts=True)
    return float(np.mean(found.scores >= limit - 1e-6))


def _exact_limits(
    searcher: Searcher, queries: Sequence[NDArray[np.float32]], kept: NDArray[np.int64]
) -> Iterator[float]:
    """Yield the score of the last of the nearest rows of each query."""
    for start in range(0, len(queries), TOGETHER):
        for scores in searcher.scan(queries[start : start + TOGETHER]):
            yield float(np.partition(scores[kept], -NEAREST)[-NEAREST])


def _sampled(searcher: Searcher) -> list[NDArray[np.float32]]:
    """Return vectors of rows spread over all of the index, the same each time."""
    kept = np.flatnonzero(searcher.distinct(searcher.snapshot.live()))
    chosen = kept[np.linspace(0, len(kept) - 1, min(QUERIES, len(kept))).astype(np.int64)]
    return list(searcher.snapshot.vectors(chosen))


REMAKE = "`penstock index compact` makes it again from the vectors"
REBUILD = "build the index anew in another folder: what the store has is not made again"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexDamage:
    """One file of an index that differs from what was written."""

    path: Path
    what: str
    hint: str

    def line(self) -> str:
        return f"{self.path} {self.what}. {self.hint[0].upper()}{self.hint[1:]}"


def verify_index(folder: Path) -> Iterator[IndexDamage]:
    """Yield what is damaged. Raises UsageError where there is no index that can be read, and
    EnvironmentFault for a damaged book."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        sound = True
        for sort, file in shard.files.items():
            for damage in _of_file(folder, sort, file):
                sound = False
                yield damage
        if sound:
            yield from _of_rows(folder / shard.files["rows"].name, shard.rows)
    for file in filter(None, (manifest.deleted, manifest.texts)):
        yield from _of_file(folder, "", file)


def _of_file(folder: Path, sort: str, file: IndexFile) -> Iterator[IndexDamage]:
    path, hint = folder / file.name, REMAKE if sort == "bits" else REBUILD
    try:
        size = path.stat().st_size
        found = hash_file(path) if size == file.bytes else ""
    except OSError as error:
        yield IndexDamage(path=path, what=f"cannot be read ({error.strerror})", hint=hint)
        return
    if size != file.bytes:
        yield IndexDamage(path=path, what=f"has {size:,} bytes of {file.bytes:,}", hint=hint)
    elif found != file.sha256:
        yield IndexDamage(path=path, what="holds other bytes than were written", hint=hint)


def _of_rows(path: Path, count: int) -> Iterator[IndexDamage]:
    try:
        metadata = open_rows(path).metadata
        columns = tuple(metadata.schema.names)
    except (OSError, ValueError) as error:
        yield IndexDamage(path=path, what=f"is no table ({error})", hint=REBUILD)
        return
    if metadata.num_rows != count or columns != COLUMNS:
        yield IndexDamage(
            path=path, what=f"has {metadata.num_rows:,} rows of {count:,}", hint=REBUILD
        )


def stats_of(folder: Path) -> dict[str, Any]:
    """Return what an index holds, in numbers, for people and programs. Raises PenstockError."""
    manifest: Manifest = read_manifest(folder)
    return {
        "folder": str(folder),
        "model": manifest.maker.model,
        "precision": manifest.maker.precision,
        "width": manifest.maker.width,
        "made_by": manifest.made_by,
        "rows": manifest.live_rows,
        "removed": manifest.deleted_rows,
        "shards": len(manifest.shards),
        "small_shards": sum(shard.rows < SHARD_ROWS for shard in manifest.shards),
        "bytes": sum(file.bytes for file in manifest.files()),
        "bytes_a_row": sum(file.bytes for file in manifest.files()) // max(manifest.rows, 1),
        "measured": {sort: asdict(found) for sort, found in manifest.measured.items()},
        "measured_rows": manifest.measured_rows,
    }


NAMED = ("key", "path", "media_path")
"""Columns by which a row is named."""


def rows_named(snapshot: Snapshot, names: Sequence[str]) -> Positions:
    """Return the live rows of these files, folders and keys. Raises UsageError when there is none
    of one of them."""
    wanted = dict.fromkeys(names)
    kept, known = _of_files_and_keys(snapshot, list(wanted))
    folders = [name for name in wanted if name not in known]
    for name in folders:
        inside = _of_folder(snapshot, name) & snapshot.live()
        if not inside.any():
            raise UsageError(
                f"no row of {snapshot.folder} is of {name}",
                hint="Give a file or a folder as it was given to the index, or a key; nothing was "
                "removed",
            )
        kept |= inside
    return np.flatnonzero(kept)


def rows_gone(snapshot: Snapshot, gone: GoneFiles) -> Positions:
    """Return the live rows whose files are no longer there."""
    kept, live = np.zeros(snapshot.rows, np.bool_), snapshot.live()
    is_gone = cache(lambda path: gone.has(text_stored(path)))
    for start, batch in snapshot.batches(["path"]):
        for at, path in enumerate(batch.column("path").to_pylist(), start):
            kept[at] = live[at] and is_gone(path)
    return np.flatnonzero(kept)


def _of_files_and_keys(snapshot: Snapshot, names: Sequence[str]) -> tuple[Kept, set[str]]:
    """Return which live rows bear one of these names, and the names that any does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    spelled = {stored_text(each): name for name in names for each in (os.path.abspath(name), name)}
    live, kept, known = snapshot.live(), np.zeros(snapshot.rows, np.bool_), set[str]()
    values = pa.array(list(spelled))
    for start, batch in snapshot.batches(NAMED):
        here = slice(start, start + len(batch))
        for name in NAMED:
            column = batch.column(name)
            found = pc.is_in(column, values).to_numpy(zero_copy_only=False) & live[here]
            kept[here] |= found
            known.update(spelled[text] for text in column.filter(found).unique().to_pylist())
    return kept, known


def _of_folder(snapshot: Snapshot, name: str) -> Kept:
    import pyarrow.compute as pc

    kept = np.zeros(snapshot.rows, np.bool_)
    folder = stored_text(os.path.join(os.path.abspath(name), ""))
    for start, batch in snapshot.batches(["path"]):
        found = pc.starts_with(batch.column("path"), folder).to_numpy(zero_copy_only=False)
        kept[start : start + len(batch)] = found
    return kept
