"""Maintains an index: measures its recall, selects how it searches, finds its rows, and tells
deleted files from those that a disk does not show now.

Recall is that of the two-step search. Bits are computed relative to the mean of the image vectors,
and the mean moves as images are added. When an index has doubled since the last measurement, the
mean and the bits are recomputed. Both are then compared with the exact scan on the index's own
vectors.

Rows are found by file, by folder or by key.
"""

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.files import whole_file
from artifacts.disk.mounts import DELETED, Absence, MissingFiles
from artifacts.disk.paths import required_path
from artifacts.errors import UsageError
from artifacts.index.manifest import (
    IndexShard,
    Manifest,
    SearchMethod,
    described,
    file_name,
    read_manifest,
)
from artifacts.index.search import (
    EXACT,
    LEAST_RECALL,
    Query,
    Searcher,
    Sort,
    direction,
)
from artifacts.index.shard import (
    SHARD_ROWS,
    Positions,
    mean_of,
    write_bits,
)
from artifacts.index.snapshot import Kept, Snapshot, open_snapshot
from artifacts.index.writing import IndexWriter
from artifacts.records.vectors import Vectors
from artifacts.remote.addresses import is_address
from artifacts.texts.tables import stored_text, text_stored
from artifacts.wording import counted


class GoneFiles:
    """Tells files that were deleted from those that cannot be seen now, and collects the latter."""

    def __init__(self, noted: Mapping[str, str]) -> None:
        """`noted` is as in `MissingFiles`."""
        self._missing = MissingFiles(noted)
        self._unseen: Counter[Absence] = Counter()
        """Folder that is away → its files that may be there."""

    def has(self, path: str) -> bool:
        """Return whether a file was deleted. Files far away are not looked up."""
        if is_address(path):
            return False
        absence = self._missing.absence_of(path, [os.path.dirname(path)])
        if absence not in (None, DELETED):
            self._unseen[absence] += 1
        return absence == DELETED

    def kept(self, index: Path) -> Iterator[tuple[Absence, int, str]]:
        """Yield each folder whose files an index keeps because they cannot be seen, their number,
        and what to do."""
        for absence, count in self._unseen.items():
            words = ["penstock", "index", "remove", absence.folder, "--index", str(index)]
            yield absence, count, f"If it was deleted or renamed: {shlex.join(words)}"

    def notes(self, index: Path) -> Iterator[str]:
        """Yield a line for each of these folders."""
        for absence, count, hint in self.kept(index):
            yield (
                f"note: the rows of {counted(count, 'file')} in {absence.folder} are kept, as its "
                f"disk may be away ({absence.reason}). {hint}"
            )


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
        bits = write_bits(path, opened.vectors, centre)
        shards.append(replace(shard, files={**shard.files, "bits": bits}))
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


def recall_of(
    searcher: Searcher, queries: Sequence[NDArray[np.float32]], sort: Sort
) -> SearchMethod:
    """Return the shortest way by which these queries find enough; where none does, the best that
    was tried, without candidates."""
    kept = searcher.distinct(searcher.snapshot.live())
    if int(kept.sum()) < FEW_ROWS:
        return EXACT
    limits = [  # the score of the last of the nearest rows of each query
        float(np.partition(scores[kept], -NEAREST)[-NEAREST])
        for start in range(0, len(queries), TOGETHER)
        for scores in searcher.scan(queries[start : start + TOGETHER])
    ]
    best = replace(EXACT, queries=len(queries), recall=0.0)
    for candidates in WIDTHS:
        for centre in dict.fromkeys((sort, "pictures")):
            method = replace(best, recall=1.0, candidates=candidates, centre=centre)
            shares = [
                _share(searcher, Query(vector=vector, sort=sort), method, limit)
                for vector, limit in zip(queries, limits, strict=True)
            ]
            recall = float(np.mean(shares))
            if recall >= LEAST_RECALL:
                return replace(method, recall=recall)
            best = replace(best, recall=max(recall, best.recall))
    return best


def _share(searcher: Searcher, query: Query, method: SearchMethod, limit: float) -> float:
    """Return the share of the nearest that are found. What is as near as the last of them counts:
    between equals there is no order."""
    hits = searcher.find(query, NEAREST, method, parts=True)
    return float(np.mean(hits.scores >= limit - 1e-6))


def _sampled(searcher: Searcher) -> list[NDArray[np.float32]]:
    """Return vectors of rows spread over all of the index, the same each time."""
    kept = np.flatnonzero(searcher.distinct(searcher.snapshot.live()))
    chosen = kept[np.linspace(0, len(kept) - 1, min(QUERIES, len(kept))).astype(np.int64)]
    return list(searcher.snapshot.vectors(chosen))


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
        "measured": {sort: asdict(method) for sort, method in manifest.measured.items()},
        "measured_rows": manifest.measured_rows,
    }


KINDS = ("path", "folder", "key", "media_path")
"""What a name may be, in this order: a name in one folder may also be the `media_path` of others'
files."""
SHOWN = 5
"""Paths that are listed of a name that several files have."""


def rows_named(snapshot: Snapshot, names: Sequence[str]) -> Positions:
    """Return the live rows of these names. A name stands for the first that it is of: the path or
    address of a file, a folder, a key, the `media_path` of one file. Raises UsageError for an empty
    name, one that no row has, and a `media_path` of several files."""
    kept = np.zeros(snapshot.rows, np.bool_)
    left = list(dict.fromkeys(required_path(name, "name") for name in names))
    for kind in KINDS if names else ():
        rows, paths_of = _rows_of(snapshot, kind, left)
        for name, paths in paths_of.items() if kind == "media_path" else ():
            if len(paths) > 1:
                listed = ", ".join(paths[:SHOWN]) + ", …" * (len(paths) > SHOWN)
                raise UsageError(
                    f"{name} is the name of several files of {snapshot.folder}: {listed}",
                    hint="Give the path of each that is meant; nothing was removed",
                )
        kept |= rows
        left = [name for name in left if name not in paths_of]
    if left:
        raise UsageError(
            f"no row of {snapshot.folder} is of {left[0]}",
            hint="Give a file or a folder as it was given to the index, or a key; nothing was "
            "removed",
        )
    return np.flatnonzero(kept)


def rows_gone(snapshot: Snapshot, gone: GoneFiles) -> Positions:
    """Return the live rows whose files are no longer there."""
    kept, live = np.zeros(snapshot.rows, np.bool_), snapshot.live()
    is_gone = cache(lambda path: gone.has(text_stored(path)))
    for start, batch in snapshot.batches(["path"]):
        for at, path in enumerate(batch.column("path").to_pylist(), start):
            kept[at] = live[at] and is_gone(path)
    return np.flatnonzero(kept)


def _rows_of(
    snapshot: Snapshot, kind: str, names: Sequence[str]
) -> tuple[Kept, dict[str, list[str]]]:
    """Return which live rows one of these names stands for as one of KINDS, and those names, each
    with the first paths."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column, spelled = "path" if kind == "folder" else kind, defaultdict[str, list[str]](list)
    for name in names:
        for text in {os.path.abspath(name), name} if column == "path" else (name,):
            value = os.path.join(text, "") if kind == "folder" else text
            spelled[stored_text(value)].append(name)
    live, kept = snapshot.live(), np.zeros(snapshot.rows, np.bool_)
    paths_of: dict[str, list[str]] = {}
    for start, batch in snapshot.batches(list({"path", column})):
        values, of = batch.column(column), dict(spelled)
        if kind == "folder":
            values = pc.replace_substring_regex(values, r"[^/]*\z", "")
            of = {value: _above(value, spelled) for value in values.unique().to_pylist()}
        wanted = pa.array([value for value, ours in of.items() if ours], pa.string())
        here = slice(start, start + len(batch))
        rows = pc.is_in(values, wanted).to_numpy(zero_copy_only=False) & live[here]
        kept[here] = rows
        pairs = (cells.filter(rows).to_pylist() for cells in (values, batch.column("path")))
        for value, path in zip(*pairs, strict=True):
            for paths in (paths_of.setdefault(name, []) for name in of[value]):
                if len(paths) <= SHOWN and text_stored(path) not in paths:
                    paths.append(text_stored(path))
    return kept, paths_of


def _above(folder: str, spelled: Mapping[str, list[str]]) -> list[str]:
    """Return the names of a folder and of those above it; each ends with a slash."""
    ends = (at + 1 for at, letter in enumerate(folder) if letter == "/")
    return [name for end in ends for name in spelled.get(folder[:end], ())]
