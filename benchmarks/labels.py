"""Scores of `penstock label` with the demo's dual encoder, over real JPEG files; prints a table.

Pictures are drawn anew from a seed, written as files, and put through the command line as anyone's
would be. It does not know how labels are made: it reads `labels.jsonl` and the truth of the drawer.

    python benchmarks/labels.py [--seed 11] [--single 300] [--several 400] [--large 30]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._common import Figure
from flows.cli.main import main as penstock
from flows.options.model import DEMO_MODEL
from penstock_demo.dual.pictures import ImageTruth, write_images
from penstock_demo.dual.scenes import PAIRS

LABELS = [" ".join(pair) for pair in PAIRS]
Row = Mapping[str, Any]
"""A line of `labels.jsonl`."""
Given = NDArray[np.bool_]
"""Which labels pictures are given, (picture, label)."""


def labelled(folder: Path, *options: str) -> list[Row]:
    """Lines of `labels.jsonl` of all pictures of a folder, as the command gives them."""
    out = folder.with_name(folder.name + "-labels-" + "".join(options).strip("-"))
    words = ["label", str(folder), "--model", DEMO_MODEL, "--labels", ",".join(LABELS), "--quiet"]
    words += ["--top", str(len(LABELS)), "--out", str(out), "--store", str(folder.parent / "store")]
    if code := penstock([*words, *options]):
        sys.exit(f"penstock label ended with {code}")
    lines = (out / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda row: str(row["media_path"]))


def one_of_all(folder: Path, kind: str, count: int, seed: int) -> list[Figure]:
    """How often the first label of a picture of one thing is that thing."""
    goals = {"trained": 95.0, "never": 85.0}
    truths = write_images(folder / kind, kind, count, seed)
    pairs = [
        (row["top"].split(), t.labels[0].split())
        for row, t in zip(labelled(folder / kind), truths, strict=True)
    ]
    colour, shape, both = np.mean(
        [(a[0] == b[0], a[1] == b[1], a == b) for a, b in pairs], axis=0
    ).tolist()
    name = f"one of {len(LABELS)}, {kind} pairs, {count} pictures"
    return [
        Figure(name=name, value=100 * both, goal=goals[kind]),
        Figure(name="  its colour", value=100 * colour),
        Figure(name="  its shape", value=100 * shape),
    ]


def f1(given: Given, right: Given) -> float:
    """The harmonic mean of precision and recall over all pictures and labels, in percent."""
    return 200 * float((given & right).sum()) / max(int(given.sum() + right.sum()), 1)


def several(folder: Path, count: int, seed: int) -> list[Figure]:
    """Accuracy on images that may have more than one label."""
    truths = write_images(folder / "several", "several", count, seed)
    rows = labelled(folder / "several")
    scores = table_of(rows, "score")
    passed = table_of(rows, "passed") > 0
    right = np.array([[label in truth.labels for label in LABELS] for truth in truths])
    cuts = np.quantile(scores, np.linspace(0.8, 1, 2000))
    auto, best = f1(passed, right), max(f1(scores >= cut, right) for cut in cuts)
    return [
        Figure(name=f"several labels, {count} pictures, F1 of `auto`", value=auto),
        Figure(name="  F1 of the best single cut, known afterwards", value=best),
        Figure(name="  the first as a share of the second", value=100 * auto / best, goal=90.0),
    ]


def table_of(rows: Sequence[Row], field: str) -> NDArray[np.float64]:
    """A field of every label of every picture, (picture, label)."""
    found = [{each["label"]: float(each[field]) for each in row["labels"]} for row in rows]
    return np.array([[row[label] for label in LABELS] for row in found])


def small(folder: Path, count: int, seed: int) -> list[Figure]:
    """How often a small thing in a large image is found, and where, without and with tiles."""
    truths = write_images(folder / "small", "small", count, seed)
    whole = np.mean(hits(labelled(folder / "small"), truths)).item() * 100
    rows = labelled(folder / "small", "--tiles", "auto")
    found = hits(rows, truths)
    tiled = 100 * np.mean(found).item()
    boxes = [holds(row, truth) for row, truth, hit in zip(rows, truths, found, strict=True) if hit]
    return [
        Figure(name=f"small thing in 4K, {count} pictures, whole picture", value=whole),
        Figure(name="  tiles", value=tiled, goal=80.0),
        Figure(name="  points above the whole picture", value=tiled - whole, goal=60.0),
        Figure(
            name="  box right, of the hits", value=100 * float(np.mean(boxes or [False])), goal=95.0
        ),
    ]


def hits(rows: Sequence[Row], truths: Sequence[ImageTruth]) -> list[bool]:
    """Whether the first label of each picture is its thing."""
    return [row["top"] == truth.labels[0] for row, truth in zip(rows, truths, strict=True)]


def holds(row: Row, truth: ImageTruth) -> bool:
    """Whether the box of a picture's thing holds its centre, give or take its radius."""
    box = next(each["box"] for each in row["labels"] if each["label"] == truth.labels[0])
    x, y, radius = truth.places[0]
    if box is None:
        return False
    left, top, right, bottom = box
    return bool(left - radius <= x <= right + radius and top - radius <= y <= bottom + radius)


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=11)
    options.add_argument("--single", type=int, default=300)
    options.add_argument("--several", type=int, default=400)
    options.add_argument("--large", type=int, default=30)
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = one_of_all(folder, "trained", given.single, given.seed)
        figures += one_of_all(folder, "never", given.single, given.seed)
        figures += several(folder, given.several, given.seed)
        figures += small(folder, given.large, given.seed)
    print("\n".join(map(str, figures)))
    return int(any(figure.missed for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
