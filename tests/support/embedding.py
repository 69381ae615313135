"""Runs of `penstock embed` in this process, and what they left behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flows.interfaces.cli.main import main

SIZES = ((60, 80), (80, 60), (50, 100), (40, 200), (63, 63), (300, 62))
"""Height and width; one side of each is too short for the tiny models' pictures to be decoded
smaller."""


def write_images(folder: Path) -> Path:
    """Pictures of noise, of several shapes."""
    draw = np.random.default_rng(0)
    for number, (high, wide) in enumerate(SIZES):
        pixels = draw.integers(0, 255, (high, wide, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
    return folder


def embed(sources: Path, model: Path, place: Path, *more: str) -> int:
    where = ["--store", str(place / "store"), "--out", str(place / "out")]
    return main(["embed", str(sources), "--model", str(model), *where, *more])


def rows(place: Path) -> list[dict[str, Any]]:
    from pyarrow.parquet import read_table

    found: list[dict[str, Any]] = read_table(place / "out" / "embeddings.parquet").to_pylist()
    return found


def vectors(place: Path) -> Any:
    return np.load(place / "out" / "embeddings.npy", mmap_mode="r")


def items(place: Path) -> dict[str, int]:
    record = json.loads((place / "out" / "run.json").read_text())
    return {stage["name"]: stage["items"] for stage in record["stages"]}
