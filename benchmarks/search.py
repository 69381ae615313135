"""A search of a million rows by their bits, then exactly, against the exact scan of all of them:
CPU time, what is found, memory, and what adding a thousand rows takes.

The vectors are drawn: 50,000 pictures in clusters on a plane of 96 dimensions, each at 20 paths,
and texts that lie elsewhere and hang on the pictures weakly, as those of models of the CLIP kind.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.index.manifest import Maker
from artifacts.index.search import EXACT, Found, Query, Searcher, Sort
from artifacts.index.shard import IndexRow
from artifacts.index.snapshot import open_snapshot
from artifacts.index.upkeep import measure, note_texts
from artifacts.index.where import Condition, matching
from artifacts.index.writing import Added, writing
from tests.support.builders.common import Peak, cpu_seconds, in_fresh_process

WIDTH, PLANE, CLUSTERS, COPIES = 768, 96, 2000, 20
PROBES, QUERIES, NEAREST = 64, 20, 10
ADDED = 1000
TEXT_SIGNAL = 0.35
"""Part of a text's direction that pictures share."""
MAKER = Maker(
    model="drawn",
    revision=None,
    half="drawn",
    text_half="drawn",
    recipe="drawn",
    precision="fp32",
    width=WIDTH,
)
Drawn = NDArray[np.float32]


class World:
    """A source of pictures and texts whose vectors lie as those of real models do."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._plane = draw.standard_normal((PLANE, WIDTH), np.float32) / PLANE**0.5
        self._centres = draw.standard_normal((CLUSTERS, PLANE), np.float32)
        self._pictures = draw.standard_normal(WIDTH, np.float32) * 0.6
        self._texts = draw.standard_normal(WIDTH, np.float32) * 0.6

    def pictures(self, count: int, seed: int) -> Drawn:
        return self._drawn(count, seed, 1.0, 0.02) + self._pictures

    def texts(self, count: int, seed: int) -> Drawn:
        return self._drawn(count, seed, TEXT_SIGNAL, 0.05) + self._texts

    def _drawn(self, count: int, seed: int, signal: float, noise: float) -> Drawn:
        draw = np.random.default_rng(seed)
        places = self._centres[draw.integers(0, CLUSTERS, count)]
        places = places + 0.8 * draw.standard_normal((count, PLANE), np.float32)
        spread = noise * draw.standard_normal((count, WIDTH), np.float32)
        found: Drawn = signal * (places @ self._plane) + spread
        return found


def rows(vectors: Drawn, copies: int, name: str = "") -> Iterator[Added]:
    """Every vector at so many paths, in parts of 5,000."""
    for copy in range(copies):
        for start in range(0, len(vectors), 5000):
            part = vectors[start : start + 5000]
            numbers = range(start, start + len(part))
            yield [_row(f"{name}{n:08d}", copy) for n in numbers], part


def _row(name: str, copy: int) -> IndexRow:
    file = f"{copy:02d}/{name}.jpg"
    key = f"{name:>064s}"
    return IndexRow(key=key, path=f"/pictures/{file}", media_path=file, digest=key)


def compare(searcher: Searcher, queries: Drawn, sort: Sort) -> None:
    """Search both ways in turn and print what each took and found."""
    ways = {"bits": searcher.method(sort), "exact": EXACT}
    found: dict[str, list[Found]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}

    def ask(way: str, vector: Drawn) -> None:
        result = searcher.find(Query(vector=vector, sort=sort), NEAREST, ways[way])
        searcher.snapshot.read(result.positions)
        found[way].append(result)

    for vector in queries:
        for way in ways:
            seconds[way].append(cpu_seconds(partial(ask, way, vector)))
    shares = [
        float(np.mean(short.scores >= exact.scores[-1] - 1e-6))
        for short, exact in zip(found["bits"], found["exact"], strict=True)
    ]
    bits, exact = (statistics.median(seconds[way]) * 1000 for way in ways)
    print(
        f"{sort:9s} bits, {ways['bits'].candidates:,} rescored {bits:6.1f} ms CPU   "
        f"exact {exact:7.1f} ms   ratio {exact / bits:5.1f}   "
        f"recall@{NEAREST} {np.mean(shares):.4f}",
        flush=True,
    )


def compare_exactly(searcher: Searcher, queries: Drawn) -> None:
    """Print what exact comparison takes: the scan of all rows, and a search of the one row in a
    hundred that a filter keeps."""
    rows = searcher.snapshot.rows
    one = (np.arange(rows) < rows // COPIES) & (np.arange(rows) % (100 // COPIES) == 0)
    ways: dict[str, Callable[[Drawn], object]] = {
        "scan of all rows": lambda vector: searcher.scan([vector]),
        "1 % of the rows kept": lambda vector: searcher.find(
            Query(vector=vector, kept=one), NEAREST
        ),
    }
    for name, look in ways.items():
        took = statistics.median(cpu_seconds(partial(look, vector)) for vector in queries)
        print(f"exactly, {name:20s} {took * 1000:7.1f} ms CPU", flush=True)


def build(folder: Path, count: int) -> None:
    """Make the index, in a process of its own: what it held is not the search's memory."""
    world = World()
    pictures = world.pictures(count // COPIES, 1)
    with writing(folder, MAKER) as writer:
        built = cpu_seconds(lambda: writer.add(rows(pictures, COPIES)))
        note_texts(writer, world.texts(PROBES, 3))
        tried = cpu_seconds(lambda: measure(writer))
    size = sum(file.bytes for file in writer.manifest.files())
    print(f"{writer.manifest.rows:,} rows of {WIDTH} in {size / 1e9:.2f} GB, {built:.0f} s CPU")
    print(f"tried on itself, {tried:.0f} s CPU: {dict(writer.manifest.measured)}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-search-") as name:
        folder = Path(name, "index")
        in_fresh_process(build, folder, given.rows)
        world, peak = World(), Peak()
        opened = time.process_time()
        searcher = Searcher(open_snapshot(folder))
        searcher.find(Query(vector=world.pictures(1, 9)[0]), NEAREST)
        opened = time.process_time() - opened
        print(
            f"opened and asked once: {opened:.2f} s CPU, {peak.bytes() / 1e6:.0f} MB anonymous at "
            f"the most above the libraries"
        )
        compare(searcher, world.pictures(QUERIES, 7), "pictures")
        compare(searcher, world.texts(QUERIES, 7), "texts")
        took = cpu_seconds(lambda: matching(searcher.snapshot, Condition("path like '%7.jpg'")))
        print(f"a condition on the paths of all rows: {took:.2f} s CPU")
        print(f"all searches: {peak.bytes() / 1e6:.0f} MB anonymous at the most, exact ones too")
        compare_exactly(searcher, world.pictures(QUERIES, 8))
        with writing(folder, MAKER) as writer:
            began = time.monotonic()
            took = cpu_seconds(lambda: writer.add(rows(world.pictures(ADDED, 5), 1, "new")))
            print(f"{ADDED} rows added: {took:.2f} s CPU, {time.monotonic() - began:.2f} s wall")


if __name__ == "__main__":
    main()
