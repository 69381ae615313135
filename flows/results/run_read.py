"""Reads a run record, which a user or another version may have changed. Writes none."""

import os
import socket
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.shapes import (
    Each,
    Left,
    Maybe,
    Misshapen,
    Some,
    anything,
    check,
    count,
    moment,
    number,
    read_json,
    text,
)
from flows.pipelines import STAGES
from flows.results.run_record import RUN_RECORD, blank, empty

POINT = (number, number, number)
HALF = {"bytes": count, "parameters": count, "precision": text, "attention": text}
PLANNED = {
    "rung": {"stage": text},
    "name": Left(text),
    "peak_bytes": number,
    "host_bytes": Left(number),
    "weight_bytes": Left(number),
    "activation_bytes": Left(number),
    "kv_bytes": Left(number),
    "workspace_bytes": Left(number),
    "context_bytes": Left(number),
}
PLAN = {
    "model": text,
    "device": text,
    "precision": Each(text),
    "batch_size": Maybe(count),
    "store": Left(text),
    "chunks": Left(count),
    "halves": Left(Each(HALF)),
    "sampling": Left(Each(anything)),
    "notes": Left([text]),
    "words": Left({"prefix": text, "suffix": text, "schema": text, "trigger": Left(text)}),
    "memory": Left(Maybe({"budget_bytes": Left(Maybe(number)), "stages": [PLANNED]})),
    "seconds": Left(Maybe(Each(anything))),
}
STAGE = {
    "name": text,
    **dict.fromkeys(("items", "total", "before", "running", "failed", "processes"), count),
    **dict.fromkeys(("tokens", "since", "seconds", "cpu_seconds"), number),
    **dict.fromkeys(("peak_host_bytes", "peak_device_bytes"), number),
    **dict.fromkeys(("baseline_before_bytes", "baseline_after_bytes"), number),
    "recent": [(number, number)],
    "attention": text,
    "precision": Each(text),
    "spans": [POINT],
    "timeline": [POINT],
    "now": [POINT],
    "warnings": [text],
    "notes": {"loaded_bytes": Left(number)},
}
TEXTS = {
    "format": text,
    "beside": anything,
    **dict.fromkeys(("written", "kept", "earlier", "others"), count),
}
RECORD = {
    **dict.fromkeys(("state", "host", "out", "error"), text),
    "pid": count,
    "started": moment,
    "updated": moment,
    "outputs": Each(text),
    "prefect": Maybe({"id": text, "name": text}),
    "plan": Some(PLAN),
    "rungs": [{"stage": text, "name": text, "reason": text, "error": text, "time": Left(moment)}],
    "stages": [STAGE],
    "media": {"total": count, "failed": count, "open": Left(count)},
    "captions": count,
    "rows": Left(count),
    "summaries": Left(count),
    "cut": Left(count),
    "texts": Left([TEXTS]),
    "earlier": Left([text]),
    "failures": [dict.fromkeys(("media_path", "message", "hint"), text)],
    "versions": Left(Each(text)),
    "command": Left(Maybe({"words": [text], "folder": text, "mac": Left(text)})),
}
"""Shape of `run.json`, as far as anything is told of it."""


def load_record(out: Path) -> dict[str, Any]:
    """Return the record of the last run into a folder. Its state is `died` when nobody works on it
    any more and it does not say how it ended. Raises UsageError or EnvironmentFault."""
    path = out / RUN_RECORD
    if not os.path.lexists(path):
        raise UsageError(f"no run has written to {out}", hint="Name the --out folder of a run")

    def prepared(found: dict[str, Any]) -> dict[str, Any]:
        check(found, {"stages": [{"name": text}]})
        names = {stage["name"] for stage in found["stages"]}
        if not names or not names <= set(STAGES):
            raise Misshapen(f"its stages are not {', '.join(STAGES)}")
        stages = [{**empty(stage["name"]), **stage} for stage in found["stages"]]
        return {**blank(out), **found, "stages": stages}

    record: dict[str, Any] = read_json(path, RECORD, "Run the command again", prepared)
    here = record["host"] in ("", socket.gethostname())
    if record["state"] == "running" and here and not os.path.exists(f"/proc/{record['pid']}"):
        record["state"] = "died"
    return record
