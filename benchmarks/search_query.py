"""A new text, in a fresh `penstock search` on an index of 10,000 rows: CPU seconds
of a text half in numpy, against the text half in the model's own code.

The text half has the size of CLIP ViT-L/14's, with random weights, in 32 bit. The rows beside some
pictures are drawn.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from artifacts.index.upkeep import measure
from artifacts.index.writing import writing
from benchmarks._clip import save_clip
from benchmarks._common import PENSTOCK, in_fresh_process
from benchmarks.search import rows

ROWS, REPEATS, PICTURES = 10_000, 5, 4
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}


def ended(*command: str) -> float:
    """Run `penstock` with these words, and return its CPU seconds, those of its processes too.
    Raises RuntimeError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*PENSTOCK, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"penstock {command[0]} ended with {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def build(place: Path, count: int) -> dict[str, Path]:
    """Make two indexes of the same rows. One has no vectors of known texts, so that nothing can be
    computed in numpy."""
    draw = np.random.default_rng(0)
    (place / "media").mkdir()
    for number in range(PICTURES):
        pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "media" / f"{number}.png")
    width = TEXT["hidden_size"]
    in_fresh_process(partial(save_clip, place / "model", None, TEXT, projection_dim=width))
    index, bare = place / "index", place / "bare"
    where = ["--model", str(place / "model"), "--store", str(place / "store")]
    ended("index", "build", str(place / "media"), "--out", str(index), "--quiet", *where)
    with writing(index) as writer:
        drawn = draw.standard_normal((count - PICTURES, width), np.float32)
        writer.add(rows(drawn, 1))
        measure(writer)
    shutil.copytree(index, bare)
    with writing(bare) as writer:
        writer.publish(replace(writer.manifest, texts=None))
    return {"in numpy": index, "the model's own code": bare}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=ROWS)
    options.add_argument("--repeats", type=int, default=REPEATS)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-search-") as name:
        place = Path(name)
        indexes = build(place, given.rows)
        seconds: dict[str, list[float]] = {way: [] for way in indexes}
        for number in range(given.repeats):
            for way, index in indexes.items():
                words = f"text {number} of {os.getpid()} {way}"
                where = ["--index", str(index), "--store", str(place / "store")]
                seconds[way].append(ended("search", words, *where))
        short, long = (statistics.median(each) for each in seconds.values())
        for way, each in seconds.items():
            print(f"{way:21s} median {statistics.median(each):5.2f} s CPU of {len(each)}")
        print(f"ratio {long / short:.1f}", flush=True)


if __name__ == "__main__":
    main()
