"""Whether more threads prepare pictures faster, for a tower that costs next to nothing.

First `penstock embed` runs whole, once per number of threads. Then the embed stage runs alone over
the frames that were stored, in one process, the numbers of threads in turns, torch on one thread.
Prints both, what was planned and taken, and whether all vectors are bit-identical.

    python -m benchmarks.preparing [--pictures 64] [--rounds 5] [--folder DIR] [--quick]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import cells, heads, in_fresh_process, met, soft_jpegs, unheard
from benchmarks.embed import Row, alike, run

THREADS = (1, 2, 4)
GOAL = 1.6
"""How many times as fast two threads are as one, at least."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where all lies meanwhile")
    options.add_argument("--quick", action="store_true", help="small pictures: does it run at all?")
    given = options.parse_args(arguments)
    os.environ.update(ONE_THREAD)
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        build(folder / "model", 32 if given.quick else 384)
        (folder / "pictures").mkdir()
        size = (96, 64) if given.quick else (1920, 1080)
        for number, jpeg in enumerate(soft_jpegs(given.pictures, size, quality=90)):
            (folder / "pictures" / f"{number:03}.jpg").write_bytes(jpeg)
        rows = [
            run(folder, str(n), ("--prepare-workers", str(n), "--keep-frames"), batch=8)
            for n in THREADS
        ]
        alone = in_fresh_process(stage, folder, given.rounds)
    print("\n".join(table(rows, alone, given.pictures)))


def build(folder: Path, side: int) -> None:
    """Write a CLIP whose vision tower has 64 patches and two narrow layers."""
    from transformers import CLIPImageProcessor

    from tests.support.dual_encoders import save_clip

    square = {"height": side, "width": side}
    part = CLIPImageProcessor(size=square, do_center_crop=False)
    save_clip(folder, part, image_size=side, patch_size=side // 8)


def stage(folder: Path, rounds: int) -> dict[str, Any]:
    """Run the embed stage alone, again and again: number of threads → seconds of each round, and
    the checksum of all vectors."""
    from artifacts.keys import digest_of
    from artifacts.packs import RecordSet, stored_namespaces
    from artifacts.store import open_store
    from stages.embed.job import EmbedJob
    from stages.embed.run import run as embed
    from stages.models.half_job import HalfJob
    from stages.process.job import job_fields

    report, ready = unheard(), 0.0

    def note(**_: object) -> None:
        nonlocal ready
        ready = time.perf_counter()

    report.note = note  # type: ignore[method-assign]

    shown = folder / "store-1"
    frames = open_store(str(shown))
    (namespace,) = stored_namespaces(frames, "frames")
    keys = sorted(RecordSet(frames, "frames", namespace).keys())
    items = [[f"{at:064x}", key, "image", "", 0, 0] for at, key in enumerate(keys)]
    took: dict[str, list[float]] = {str(n): [] for n in THREADS}
    digests = set()
    for turn in range(rounds + 1):
        for threads in THREADS:
            store = str(folder / f"alone-{turn}-{threads}")
            job = EmbedJob(
                half=HalfJob(model=str(folder / "model"), dtype="float32", route="dual"),
                store=store,
                frames_store=str(shown),
                frames_namespace=namespace,
                namespace="ab",
                batches=[items[at : at + 8] for at in range(0, len(items), 8)],  # type: ignore[misc]
                workers=threads,
            )
            embed(json.loads(json.dumps(job_fields(job))), report)
            took[str(threads)].append(time.perf_counter() - ready)
            made = RecordSet(open_store(store), "embeddings", "ab")
            digests.add(digest_of([made.place(key).checksum for key in sorted(made.keys())]))
    # The first round imports what the stage needs.
    return {"took": {n: some[1:] for n, some in took.items()}, "digests": sorted(digests)}


def table(rows: Sequence[Row], alone: dict[str, Any], pictures: int) -> Iterator[str]:
    """Markdown."""
    yield f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    yield heads(
        "threads | stage alone, ms a picture | times one | embed stage, s | planned | taken, MiB"
        " | vectors"
    )
    least = {int(n): min(some) for n, some in alone["took"].items()}
    pairs = {
        n: statistics.median(
            a / b for a, b in zip(alone["took"]["1"], alone["took"][str(n)], strict=True)
        )
        for n in THREADS
    }
    for n, row in zip(THREADS, rows, strict=True):
        each = f"{1000 * least[n] / pictures:.1f}", f"{pairs[n]:.2f}", f"{row.seconds:.1f}"
        yield cells([n, *each, *row.sizes, alike(row.vectors, rows[0].vectors)])
    same = len(alone["digests"]) == 1 and all(
        np.array_equal(r.vectors, rows[0].vectors) for r in rows
    )
    planned = all(row.measured <= row.planned for row in rows)
    yield f"two threads at least {GOAL} times one: {met(pairs[2] >= GOAL)}"
    yield f"four no slower than two: {met(least[4] <= 1.05 * least[2])}"
    yield f"same bytes: {met(same)}; within the plan: {met(planned)}"


if __name__ == "__main__":
    main()
