"""The portions of a run, done by workers of any number and in any order: the bytes are the same."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.job.partitions import partitions_of
from flows.options.commands import CaptionConfig
from penstock_demo.clips import write_clips
from tests.support.pipeline import Place

pytestmark = pytest.mark.slow


def run(store: Path, out: Path, first: str, *sources: str) -> Place:
    place = Place(clips=Path(first), out=out, store=store)
    done = place.run(*sources, "--quiet")
    assert done.returncode == 0, done.stderr
    return place


def test_two_orders_of_workers_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_clips(tmp_path / "clips", 12, seed=3)
    config = CaptionConfig(
        sources=(str(tmp_path / "clips"),), model="demo", out=str(tmp_path / "cut")
    )
    portions, _ = partitions_of(config, max_files=3)
    assert len(portions) == 4
    found = set()
    for order, workers in enumerate((1, 3)):
        folder = tmp_path / str(order)
        mixed = random.Random(order).sample(portions, len(portions))
        with ThreadPoolExecutor(workers) as pool:
            running = [pool.submit(run, folder / "store", folder / p.name, p.source) for p in mixed]
        for each in running:
            each.result()
        gathered = run(folder / "store", folder / "all", *(p.source for p in portions))
        assert sum(stage["items"] for stage in gathered.stages().values()) == 0
        found.add((gathered.out / "captions.jsonl").read_bytes())
    assert len(found) == 1
