"""Maintains an index: measures its recall, and selects how it searches.

Recall is that of the two-step search. Bits are computed relative to the mean of the image vectors,
and the mean moves as images are added. When an index has doubled since the last measurement, the
mean and the bits are recomputed. Both are then compared with the exact scan on the index's own
vectors.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.files import whole_file
from artifacts.index.manifest import IndexShard, Manifest, SearchMethod, described, file_name
from artifacts.index.search import EXACT, LEAST_RECALL, Query, Searcher, Sort, direction
from artifacts.index.shard import mean_of, write_bits
from artifacts.index.snapshot import open_snapshot
from artifacts.index.writing import IndexWriter
from artifacts.records.vectors import Vectors

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
    live_rows = searcher.distinct(searcher.snapshot.live())
    if int(live_rows.sum()) < FEW_ROWS:
        return EXACT
    limits = [  # the score of the last of the nearest rows of each query
        float(np.partition(scores[live_rows], -NEAREST)[-NEAREST])
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
    live_rows = np.flatnonzero(searcher.distinct(searcher.snapshot.live()))
    chosen = live_rows[
        np.linspace(0, len(live_rows) - 1, min(QUERIES, len(live_rows))).astype(np.int64)
    ]
    return list(searcher.snapshot.vectors(chosen))
