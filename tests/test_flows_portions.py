"""The portions of a run, done by workers of any number and in any order: the bytes are the same."""

import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.job.partitions import partitions_of
from flows.options.commands import CaptionConfig
from penstock_demo.clips import write_clips
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS

pytestmark = pytest.mark.slow


def penstock(store: Path, *words: str) -> None:
    done = subprocess.run(
        [*PENSTOCK, "caption", *words, "--model", "demo", "--store", str(store), "--quiet"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_two_orders_of_workers_give_the_same_bytes(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 12, seed=3)
    config = CaptionConfig(
        sources=(str(tmp_path / "clips"),), model="demo", out=str(tmp_path / "cut")
    )
    portions, _ = partitions_of(config, max_files=3)
    assert len(portions) == 4
    found = set()
    for order, workers in enumerate((1, 3)):
        place = tmp_path / str(order)
        mixed = random.Random(order).sample(portions, len(portions))
        with ThreadPoolExecutor(workers) as pool:
            list(
                pool.map(
                    lambda p, place=place: penstock(
                        place / "store", p.source, "--out", str(place / p.name)
                    ),
                    mixed,
                )
            )
        sources = [portion.source for portion in portions]
        penstock(place / "store", *sources, "--out", str(place / "all"))
        record = json.loads((place / "all" / "run.json").read_text())
        assert sum(stage["items"] for stage in record["stages"]) == 0  # what gathers makes nothing
        found.add((place / "all" / "captions.jsonl").read_bytes())
    assert len(found) == 1
