"""Gathers what the report shows of a training: its losses and memory step by step, and what it says
before and after; draws nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.results.tuned import TrainingFound

MOST_POINTS = 600
"""Points of a curve that are drawn: more do not show."""
GIB = 1 << 30
COLUMNS = ("should say", "said before", "says now")


def training_facts(training: TrainingFound) -> dict[str, Any] | None:
    """Return curves and samples; None while no step is made."""
    if training.tuned is None:
        return None
    record = training.tuned.record
    return {
        "line": training.tuned.line(),
        "curves": [_losses(record), _memory(record)],
        "columns": COLUMNS,
        "rows": list(_samples(record)),
    }


def _losses(record: Mapping[str, Any]) -> dict[str, Any]:
    series = [{"name": "trained on", "kind": "trained", "points": _thin(record["losses"])}]
    if held := record["held_out_losses"]:
        series.append(
            {"name": "held out", "kind": "held-out", "points": [list(one) for one in held]}
        )
    return {"title": "Loss of a token, by step", "series": series}


def _memory(record: Mapping[str, Any]) -> dict[str, Any]:
    values = [value / GIB for value in record["memory_bytes"]]
    series = [{"name": "after each step", "kind": "memory", "points": _thin(values)}]
    return {"title": "Memory of the host, GiB, by step", "series": series}


def _thin(values: list[float]) -> list[list[float]]:
    """Return [step, value] of so many steps at the most; steps count from 1."""
    every = max(1, -(-len(values) // MOST_POINTS))
    points = [[at + 1, value] for at, value in enumerate(values)]
    return points[::every] + (points[-1:] if (len(points) - 1) % every else [])


def _samples(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if not record["scores"]:
        return
    before, after = record["scores"][0]["samples"], record["scores"][-1]["samples"]
    for one, other in zip(before, after, strict=False):
        now = other["said"] if len(record["scores"]) > 1 else "-"
        yield str(one["right"]), str(one["said"]), str(now)
