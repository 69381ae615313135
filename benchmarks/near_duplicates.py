"""Groups of near duplicates among a million vectors, against what faiss takes alone: time, what
is found of groups that were planted, memory.

Each group is a vector and others at a cosine of 0.90 to 0.99 to it. All others are random. faiss
alone is given rows in 16 bit and searches for all pairs; it has as many lists, trained alike, and
looks into as many of them as find what Penstock finds.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.near_duplicates import LISTS, ROUNDS, TRAINED_ROWS, groups
from benchmarks._common import Peak, in_fresh_process

WIDTH, THRESHOLD = 768, 0.8995
BLOCK = 20_000
Drawn = NDArray[np.float32]
Numbers = NDArray[np.int64]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--groups", type=int, default=50_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-near-") as name:
        folder = Path(name)
        truth = plant(folder, given)
        ours, recall = run(folder, "penstock", truth)
        alone, _ = run(folder, "faiss", truth, recall)
        print(f"penstock / faiss alone: {ours / alone:.2f} of the time", flush=True)


def plant(folder: Path, given: argparse.Namespace) -> Numbers:
    """Write the vectors; return for each row the first of its group, itself where it is alone."""
    draw = np.random.default_rng(0)
    out = np.lib.format.open_memmap(
        folder / "vectors.npy", "w+", np.dtype("<f2"), (given.rows, WIDTH)
    )
    draw.standard_normal((1, WIDTH), np.float32)  # published figures are of what follows
    for start in range(0, given.rows, BLOCK):
        count = min(BLOCK, given.rows - start)
        out[start : start + count] = unit(draw.standard_normal((count, WIDTH), np.float32))
    sizes = draw.integers(1, 4, given.groups)
    chosen = draw.permutation(given.rows)[: given.groups + sizes.sum()]
    first = np.repeat(chosen[: given.groups], sizes)
    truth = np.arange(given.rows)
    truth[chosen[given.groups :]] = first
    for members in np.array_split(chosen[given.groups :], max(1, len(first) // BLOCK)):
        base = unit(out[truth[members]].astype(np.float32))
        away = out[members].astype(np.float32)
        away = unit(away - np.einsum("ij,ij->i", away, base)[:, None] * base)
        cosine = draw.uniform(0.90, 0.99, (len(members), 1)).astype(np.float32)
        out[members] = cosine * base + (1 - cosine**2) ** 0.5 * away
    out.flush()
    np.save(folder / "truth.npy", truth)
    print(f"{given.rows:,} rows of {WIDTH}, {given.groups:,} groups of 2 to 4, seed 0", flush=True)
    return truth


def run(folder: Path, way: str, truth: Numbers, recall: float = 0.0) -> tuple[float, float]:
    """Group by one way in a process of its own, and print what that took and found. Returns seconds
    and recall."""
    told = in_fresh_process(grouped, way, folder, recall)
    found = np.load(folder / f"{way}.npy")
    members = np.flatnonzero(truth != np.arange(len(truth)))
    recalled = float(np.mean(found[members] == found[truth[members]]))
    joined = np.flatnonzero(found != np.arange(len(found)))
    right = float(np.mean(truth[joined] == truth[found[joined]])) if len(joined) else 1.0
    print(
        f"{way:9s} {told['seconds'] / 60:6.2f} min ({told['cpu'] / 60:.2f} of CPU)   "
        f"recall {recalled:.4f}   precision {right:.4f}   peak {told['anonymous'] / 1e6:,.0f} MB "
        f"anonymous, {told['resident'] / 1e6:,.0f} with the mapped file   {told['note']}",
        flush=True,
    )
    return told["seconds"], recalled


def grouped(way: str, folder: Path, recall: float) -> dict[str, Any]:
    """Group by one way, and return what it took."""
    peak, began, cpu = Peak(0.05), time.monotonic(), time.process_time()
    found, note = WAYS[way](folder, recall)
    told = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu, "note": note}
    told |= {
        "anonymous": peak.bytes(),
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    np.save(folder / f"{way}.npy", found)
    return told


def by_penstock(folder: Path, _: float) -> tuple[Numbers, str]:
    return groups(folder / "vectors.npy", THRESHOLD), ""


def by_faiss(folder: Path, recall: float) -> tuple[Numbers, str]:
    """An inverted file in 16 bit. How many lists find so much is tried on planted pairs, which is
    not part of its time when it is subtracted: it takes a second."""
    import faiss

    vectors, draw = np.load(folder / "vectors.npy", mmap_mode="r"), np.random.default_rng(0)
    count = max(1, int(LISTS * len(vectors) ** 0.5))
    index: Any = faiss.index_factory(WIDTH, f"IVF{count},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.spherical = ROUNDS, True
    sample = draw.choice(len(vectors), min(len(vectors), TRAINED_ROWS * count), replace=False)
    index.train(vectors[np.sort(sample)].astype(np.float32))
    for start in range(0, len(vectors), BLOCK):
        index.add(vectors[start : start + BLOCK].astype(np.float32))
    truth = np.load(folder / "truth.npy")
    members = np.flatnonzero(truth != np.arange(len(truth)))[:5000]
    near, homes = (
        index.quantizer.search(vectors[rows].astype(np.float32), min(count, 256))[1]
        for rows in (members, truth[members])
    )
    either = (near == homes[:, :1]) | (homes == near[:, :1])
    shares = np.logical_or.accumulate(either, axis=1).mean(axis=0)
    index.nprobe = min(int(np.searchsorted(shares, recall)) + 1, count)
    ends: list[Numbers] = []
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK].astype(np.float32)
        limits, _, others = index.range_search(block, THRESHOLD)
        rows = np.repeat(np.arange(start, start + len(block)), np.diff(limits.astype(np.int64)))
        ends.append(np.stack([rows, others]))
    return joined(len(vectors), ends), f"{count} lists, {index.nprobe} looked into"


def joined(count: int, ends: list[Numbers]) -> Numbers:
    """Return for each row the first of those that pairs connect it with."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate(ends, axis=1)
    graph = coo_array((np.ones(pairs.shape[1], np.bool_), pairs), (count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first, same = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(first[same], np.int64)


def unit(vectors: Drawn) -> Drawn:
    found: Drawn = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


WAYS: dict[str, Callable[[Path, float], tuple[Numbers, str]]] = {
    "penstock": by_penstock,
    "faiss": by_faiss,
}

if __name__ == "__main__":
    main()
