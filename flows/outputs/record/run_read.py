"""Reads a run record, which a user may have changed. Writes none."""

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from artifacts.disk.json_shapes import (
    EmptyOr,
    MapOf,
    Nullable,
    OptionalField,
    ShapeError,
    anything,
    count,
    moment,
    number,
    read_json,
    string,
    text,
)
from artifacts.disk.regular_files import guard, refuse_links
from artifacts.errors import PenstockError, UsageError
from artifacts.texts.edits import DECISIONS
from flows.core.machine.leases import is_alive
from flows.core.pipelines import STAGES
from flows.outputs.marker import MARKER
from flows.outputs.record.run_record import RUN_RECORD, Entry, history_of, seconds_of
from flows.outputs.record.stage_record import StageRecord, stages_in

POINT = (number, number, number)
RUNG = {"stage": text, "name": text, "reason": text, "error": text, "time": moment}
HALF = {"bytes": count, "parameters": count, "precision": text, "attention": text}
PLANNED = {
    "rung": {"stage": text},
    "name": text,
    **dict.fromkeys(("peak_bytes", "host_bytes", "weight_bytes", "activation_bytes"), number),
    **dict.fromkeys(("kv_bytes", "workspace_bytes", "context_bytes"), number),
}
PLAN = {
    "model": string,
    "device": text,
    "precision": MapOf(text),
    "batch_size": Nullable(count),
    "store": string,
    "chunks": OptionalField(count),
    "counts": OptionalField(text),
    "halves": MapOf(HALF),
    "sampling": MapOf(anything),
    "notes": [text],
    "words": OptionalField(
        {"prefix": text, "suffix": text, "schema": text, "trigger": OptionalField(text)}
    ),
    "memory": OptionalField(
        Nullable({"budget_bytes": OptionalField(Nullable(number)), "stages": [PLANNED]})
    ),
    "seconds": OptionalField(Nullable(MapOf(anything))),
}
STAGE = {
    "name": text,
    **dict.fromkeys(("items", "total", "before", "running", "failed", "processes"), count),
    **dict.fromkeys(("tokens", "since", "seconds", "cpu_seconds"), number),
    **dict.fromkeys(("peak_host_bytes", "peak_device_bytes"), number),
    **dict.fromkeys(("baseline_before_bytes", "baseline_after_bytes"), number),
    "recent": [(number, number)],
    "latest": OptionalField(string),
    "attention": text,
    "precision": MapOf(text),
    "device": text,
    "devices": MapOf(dict.fromkeys(("items", "seconds", "peak_device_bytes"), number)),
    "spans": [POINT],
    "timeline": [POINT],
    "now": [POINT],
    "warnings": [text],
    "notes": {"loaded_bytes": OptionalField(number)},
}
TEXTS = {
    "format": text,
    "beside": anything,
    **dict.fromkeys(("written", "kept", "earlier", "others"), count),
}
ENTRY = {
    "started": moment,
    **dict.fromkeys(("runs", "tokens", "peak_host_bytes", "peak_device_bytes"), count),
    "seconds": number,
    "items": MapOf(count),
    "rungs": [RUNG],
    "timeline": MapOf([POINT]),
    "keys": [text],
    "current": lambda value: isinstance(value, bool),
}
RECORD = {
    **dict.fromkeys(("state", "host", "error"), text),
    "out": string,
    "pid": count,
    "started": moment,
    "updated": moment,
    "outputs": MapOf(string),
    "prefect": Nullable({"id": text, "name": text}),
    "plan": EmptyOr(PLAN),
    "rungs": [RUNG],
    "history": OptionalField([ENTRY]),
    "keys": OptionalField([text]),
    "mounts": OptionalField(MapOf(text)),
    "keep": OptionalField(text),
    "stages": [STAGE],
    "media": {
        **dict.fromkeys(("total", "failed", "open"), count),
        "warned": OptionalField(count),
    },
    "captions": count,
    **dict.fromkeys(("rows", "summaries", "cut"), count),
    **dict.fromkeys(DECISIONS, OptionalField(count)),
    "texts": [TEXTS],
    "earlier": [text],
    "edited": OptionalField(MapOf([text])),
    "failures": [dict.fromkeys(("media_path", "message", "hint"), text)],
    "versions": MapOf(text),
    "partitions": OptionalField(
        {**dict.fromkeys(("total", "done", "failed"), count), "seconds": number}
    ),
    "command": Nullable({"words": [string], "folder": string}),
}
"""Shape of the parts of `run.json` that are read."""
PUBLISHED = re.compile(r'\{"time": (\d+\.?\d*),')
"""The time in a line of a stage's journal."""


def runs_below(out: Path) -> list[Path]:
    """Return the output folders of other runs in a folder."""
    return sorted(marker.parent for marker in out.glob(f"*/{MARKER}"))


def load_record(out: Path) -> dict[str, Any]:
    """Return the record of the last run into a folder. The state is `died` if the record says
    `running` but its process is gone. Raises UsageError or EnvironmentFault, also for a link among
    the outputs."""
    path = out / RUN_RECORD
    if not os.path.lexists(path):
        hint = "Name the --out folder of a run"
        hint += f", such as {below[0]}" if (below := runs_below(out)) else ""
        raise UsageError(
            f"no run has written to {out}",
            hint=f"{hint}; one that has just begun writes there after it has read its sources",
        )

    guard(out)
    for file in out.glob("*.json*"):  # an archive may hold links to outputs of other runs
        refuse_links(file)

    def check_stages(stored: dict[str, Any]) -> None:
        names = {stage["name"] for stage in stored["stages"]}
        if not names or not names <= set(STAGES):
            raise ShapeError(f"its stages are not {', '.join(STAGES)}")

    record: dict[str, Any] = read_json(path, RECORD, "Run the command again", check_stages)
    stages = [StageRecord.of_json(stage) for stage in record["stages"]]
    record = {"history": [], "keys": [], "keep": "", **record, "stages": stages}
    here = record["host"] in ("", socket.gethostname())
    if record["state"] == "running" and here and not is_alive(record["pid"]):
        record["state"] = "died"
        _count_published(out, record)
    return record


def _count_published(out: Path, record: dict[str, Any]) -> None:
    """Count what the stages of a killed run published after its record was last written."""
    began = seconds_of(record["started"])
    for stage in stages_in(record):
        made = 0
        for journal in out.glob(f"logs/{stage.name}[.-]*items.jsonl"):
            refuse_links(journal)
            with journal.open(encoding="utf-8", errors="replace") as lines:
                times = filter(None, map(PUBLISHED.match, lines))
                made += sum(float(match[1]) >= began for match in times)
        stage.running = max(stage.running, made - stage.items)


def same_work_in(out: Path, keys: Iterable[str]) -> bool:
    """Return whether the last run into a folder needed one of these keys of items, so that another
    run continues it."""
    try:
        return not frozenset(load_record(out)["keys"]).isdisjoint(keys)
    except PenstockError:
        return False


def history_in(out: Path) -> list[Entry]:
    """Return the entries of the runs into a folder, those of killed ones too. It is a report: what
    cannot be read, or was copied from another folder, has none."""
    try:
        record = load_record(out)
    except PenstockError:
        return []
    return history_of(record) if record["out"] == str(out) else []
