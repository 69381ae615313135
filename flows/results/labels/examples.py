"""Learns thresholds from a few pictures whose labels people gave; runs no model.

Source: Platt, Probabilistic outputs for support vector machines (1999): a logistic curve is fitted
to the scores of a label, with targets kept off 0 and 1, and cut where it is even.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import UsageError
from artifacts.regular import read_text

MOST_BYTES = 1 << 26
STEPS, RIDGE = 100, 1e-9
HOW = "Give a CSV file with the columns media_path and label, a row for each label of a picture"
Examples = Mapping[str, frozenset[str]]
"""Path of a picture, as `labels.jsonl` has it → the labels that it has."""


def examples_of(told: str, labels: Sequence[str]) -> Examples:
    """Return which labels some pictures have, by the file that `--examples` names; empty: none. A
    picture without any has a row with an empty label. Raises UsageError."""
    if not told:
        return {}
    path = Path(told).expanduser()
    try:
        text = read_text(path, MOST_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--examples {path} cannot be read: {reason}", hint=HOW) from error
    rows = csv.DictReader(io.StringIO(text))
    if not {"media_path", "label"} <= set(rows.fieldnames or ()):
        raise UsageError(f"--examples {path} has no columns media_path and label", hint=HOW)
    found: dict[str, set[str]] = {}
    for row in rows:
        name = (row["label"] or "").strip()
        if name and name not in labels:
            raise UsageError(
                f"--examples {path} has the label {name!r}, which is not among --labels", hint=HOW
            )
        found.setdefault(row["media_path"], set()).update({name} - {""})
    return {picture: frozenset(names) for picture, names in found.items()}


def learned_threshold(scores: NDArray[np.float64], has: NDArray[np.bool_]) -> float | None:
    """Return the score above which a label is more likely than not. It is None where the examples
    cannot tell: there are none with it, or without, or they score no higher with it."""
    with_it, without = int(has.sum()), int((~has).sum())
    if not with_it or not without or scores[has].mean() <= scores[~has].mean():
        return None
    spread, centre = float(scores.std()), float(scores.mean())
    x = (scores - centre) / spread
    targets = np.where(has, (with_it + 1) / (with_it + 2), 1 / (without + 2))
    slope, offset = 1.0, math.log((with_it + 1) / (without + 1))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(slope * x + offset)))
        weight, error = p * (1 - p), p - targets
        hessian = np.array(
            [
                [(weight * x * x).sum() + RIDGE, (weight * x).sum()],
                [(weight * x).sum(), weight.sum() + RIDGE],
            ]
        )
        step = np.linalg.solve(hessian, np.array([(error * x).sum(), error.sum()]))
        slope, offset = slope - step[0], offset - step[1]
        if np.abs(step).max() < 1e-9:
            break
    return float(centre - spread * offset / slope) if slope > 0 else None
