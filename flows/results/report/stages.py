"""Gathers the report's data on stages: a timeline of each process with its memory and rung, and
tables of progress and of planned versus measured memory. Draws nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.console.units import duration, size
from flows.pipelines import STAGES
from flows.results.run_record import seconds_of
from flows.results.status import COLUMNS, StageStatus, cells

MORE = ("planned time", "CPU time", "processes", "tokens", "attention")
MIN_SHARE_BYTES = 100_000_000
"""Minimum planned peak for which a share is shown; below it, noise of any process dominates."""
PARTS = {
    "weight_bytes": "weights",
    "activation_bytes": "activations",
    "kv_bytes": "KV cache",
    "workspace_bytes": "workspace",
    "context_bytes": "context",
    "peak_bytes": "planned peak",
}


def timeline_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return `seconds` (from the run's start to its last update), `stages` and `rungs`. Times are
    seconds since the run's start, memory is bytes."""
    began = seconds_of(record["started"])
    seconds = max(0.0, seconds_of(record["updated"]) - began)
    stages = [_stage(record, entry, began, seconds) for entry in record["stages"]]
    last = max((span[1] for stage in stages for span in stage["spans"]), default=0.0)
    return {
        "seconds": max(seconds, last),
        "stages": stages,
        "rungs": [_rung(rung, began) for rung in record["rungs"]],
    }


def _memory(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record["plan"].get("memory") or {}


def _stage(
    record: Mapping[str, Any], entry: Mapping[str, Any], began: float, seconds: float
) -> dict[str, Any]:
    spans = entry["spans"]
    curves = _curves(entry["timeline"], spans, entry["seconds"])
    drawn = [[start, end] for start, end, _ in spans]
    if record["state"] in ("running", "died") and entry["since"]:
        start = max(0.0, entry["since"] - began)
        drawn.append([start, max(start, seconds)])
        curves += filter(None, [[[round(start + t, 2), *bytes_] for t, *bytes_ in entry["now"]]])
    plan = plan_of(record, entry["name"])
    gpu = record["plan"].get("device", "cpu") != "cpu"
    on_device = gpu and STAGES[entry["name"]].part is not None
    host_base = int(entry["notes"].get("loaded_bytes") or 0)
    budget = _memory(record).get("budget_bytes")
    return {
        "name": entry["name"],
        "spans": drawn,
        "curves": curves,
        "planned": {
            "host": _above(host_base, plan.get("host_bytes" if on_device else "peak_bytes")),
            "device": _above(entry["baseline_before_bytes"], plan.get("peak_bytes"))
            if on_device
            else None,
        },
        "budget": {
            "host": None if gpu or not entry["spans"] else _above(host_base, budget),
            "device": _above(entry["baseline_before_bytes"], budget) if on_device else None,
        },
        "rung": plan.get("name") or "",
    }


def plan_of(record: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """Return the planned memory of a stage; empty if nothing was planned."""
    return next((p for p in _memory(record).get("stages", ()) if p["rung"]["stage"] == stage), {})


def _above(base: int, more: Any) -> int | None:
    """Return the baseline plus the planned bytes; None if nothing was planned."""
    return base + int(more) if more else None


def _curves(
    points: Sequence[Sequence[Any]], spans: Sequence[Sequence[float]], worked: float
) -> list[list[list[Any]]]:
    """Return the memory points of each process, by the time of the run.

    The record has them by the working time of the stage. They are aligned with the end of a
    process, not its start, because it may have waited for the GPU before its first sample.
    """
    spans = spans or [[0.0, worked, 0.0]]
    ends = [
        *(span[2] for span in spans[1:]),
        max(worked, *(point[0] for point in points[-1:]), 0.0),
    ]
    found: list[list[list[Any]]] = [[] for _ in spans]
    at = 0
    for seconds, host, device in points:
        while at + 1 < len(spans) and seconds >= spans[at + 1][2]:
            at += 1
        start, end, _ = spans[at]
        moment = min(max(end - (ends[at] - seconds), start), end)
        found[at].append([round(moment, 2), host, device])
    return [curve for curve in found if curve]


def _rung(rung: Mapping[str, Any], began: float) -> dict[str, Any]:
    texts = {name: rung[name] for name in ("stage", "name", "reason", "error")}
    return {**texts, "at": max(0.0, seconds_of(rung["time"]) - began)}


def stage_table(record: Mapping[str, Any], stages: Sequence[StageStatus]) -> dict[str, Any]:
    """Return `columns` and `rows`, one row per stage."""
    planned = record["plan"].get("seconds") or {}
    rows = [
        [*cells(stage), *_more(entry, planned.get(stage.name))]
        for stage, entry in zip(stages, record["stages"], strict=True)
    ]
    return _without_empty_columns((*COLUMNS, *MORE), rows)


def plan_table(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return `columns` and `rows`: each stage's planned peak with its parts, and the measured peak.
    All exclude the memory of imports."""
    rows = []
    for entry in record["stages"]:
        plan = plan_of(record, entry["name"])
        if not plan.get("peak_bytes"):
            continue
        measured = _above_imports(record, entry)
        is_comparable = measured > 0 and plan["peak_bytes"] >= MIN_SHARE_BYTES
        share = f"{measured / plan['peak_bytes']:.0%}" if is_comparable else "-"
        share += ", over it" if is_comparable and measured > plan["peak_bytes"] else ""
        parts = (size(plan[part]) if plan.get(part) else "-" for part in PARTS)
        texts = size(measured) if measured > 0 else "-"
        rows.append([entry["name"], plan.get("name") or "-", *parts, texts, share])
    return _without_empty_columns(
        ("stage", "rung", *PARTS.values(), "measured peak", "of the plan"), rows
    )


def _above_imports(record: Mapping[str, Any], entry: Mapping[str, Any]) -> int:
    if record["plan"].get("device", "cpu") != "cpu":
        return int(entry["peak_device_bytes"] - entry["baseline_before_bytes"])
    return int(entry["peak_host_bytes"] - entry["notes"].get("loaded_bytes", 0))


def _more(entry: Mapping[str, Any], planned_seconds: Any) -> tuple[str, ...]:
    return (
        duration(planned_seconds) if isinstance(planned_seconds, int | float) else "-",
        duration(entry["cpu_seconds"]) if entry["cpu_seconds"] else "-",
        str(entry["processes"] or "-"),
        f"{entry['tokens']:,}" if entry["tokens"] else "-",
        entry["attention"] or "-",
    )


def _without_empty_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return a table without columns that hold only `-`."""
    texts = [at for at in range(len(columns)) if any(row[at] != "-" for row in rows)]
    return {
        "columns": [columns[at] for at in texts],
        "rows": [[row[at] for at in texts] for row in rows],
    }
