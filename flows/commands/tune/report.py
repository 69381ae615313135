"""Gathers the report's section on a training: its losses, its memory, and captions before and
after."""

from collections.abc import Iterator

from artifacts.disk.json_shapes import Json
from stages.tune.record import TrainingRecord

MAX_POINTS = 600
"""Maximum points drawn per curve."""
GIB = 1 << 30
TRAINING_COLUMNS = ("reference", "before training", "now")


def training_facts(line: str, record: TrainingRecord) -> dict[str, Json]:
    """Return curves and samples of a training whose result is this line."""
    return {
        "line": line,
        "curves": [_losses(record), _memory(record)],
        "columns": TRAINING_COLUMNS,
        "rows": list(_samples(record)),
    }


def _losses(record: TrainingRecord) -> dict[str, Json]:
    series: list[Json] = [{"name": "trained on", "kind": "trained", "points": _thin(record.losses)}]
    if held := record.held_out_losses:
        series.append({"name": "held out", "kind": "held-out", "points": held})
    return {"title": "Loss per token, by step", "series": series}


def _memory(record: TrainingRecord) -> dict[str, Json]:
    values = [value / GIB for value in record.memory_bytes]
    series: Json = [{"name": "after each step", "kind": "memory", "points": _thin(values)}]
    return {"title": "Host memory, GiB, by step", "series": series}


def _thin(values: list[float]) -> list[list[float]]:
    """Return at most MAX_POINTS pairs [step, value]; steps count from 1."""
    every = max(1, -(-len(values) // MAX_POINTS))
    points = [[at + 1, value] for at, value in enumerate(values)]
    return points[::every] + (points[-1:] if (len(points) - 1) % every else [])


def _samples(record: TrainingRecord) -> Iterator[tuple[str, str, str]]:
    if not record.scores:
        return
    before, after = record.scores[0].samples, record.scores[-1].samples
    for one, other in zip(before, after, strict=False):
        yield one.right, one.said, other.said if len(record.scores) > 1 else "-"
