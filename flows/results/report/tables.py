"""What a report tells of the stages in tables: how they stand, and what was planned against what
was measured; draws nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.console.display import duration, size
from flows.results.report.timeline import plan_of
from flows.results.standing import COLUMNS, StageStanding, cells

MORE = ("planned time", "CPU time", "processes", "tokens", "attention")
PARTS = {
    "weight_bytes": "weights",
    "activation_bytes": "activations",
    "kv_bytes": "KV cache",
    "workspace_bytes": "workspace",
    "context_bytes": "context",
    "peak_bytes": "planned peak",
}


def stage_table(record: Mapping[str, Any], stages: Sequence[StageStanding]) -> dict[str, Any]:
    """`columns` and `rows`, a row a stage."""
    planned = record["plan"].get("seconds") or {}
    rows = [
        [*cells(stage), *_more(entry, planned.get(stage.name))]
        for stage, entry in zip(stages, record["stages"], strict=True)
    ]
    return _telling((*COLUMNS, *MORE), rows)


def plan_table(record: Mapping[str, Any]) -> dict[str, Any]:
    """`columns` and `rows`: the parts of each stage's planned peak, all above what its imports
    take, and the peak that was measured."""
    rows = []
    for entry in record["stages"]:
        plan = plan_of(record, entry["name"])
        if not plan.get("peak_bytes"):
            continue
        measured = _above_imports(record, entry)
        share = f"{measured / plan['peak_bytes']:.0%}" if measured > 0 else "-"
        parts = (size(plan[part]) if plan.get(part) else "-" for part in PARTS)
        told = size(measured) if measured > 0 else "-"
        rows.append([entry["name"], plan.get("name") or "-", *parts, told, share])
    return _telling(("stage", "rung", *PARTS.values(), "measured peak", "of the plan"), rows)


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


def _telling(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Without columns of which there is nothing to say."""
    told = [at for at in range(len(columns)) if any(row[at] != "-" for row in rows)]
    return {
        "columns": [columns[at] for at in told],
        "rows": [[row[at] for at in told] for row in rows],
    }
