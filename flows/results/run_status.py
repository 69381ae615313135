"""Collects for programs the state of the run, export or training in a folder. Reads files alone."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.results.export_result import ExportFound, export_in
from flows.results.run_read import load_record
from flows.results.status import advice, stages_of
from flows.results.tuned import training_in


def run_status(out: Path) -> dict[str, Any]:
    """Return the object that `penstock status --json` prints. Raises UsageError, EnvironmentFault.

    An export adds `checkpoint`, a training `training`; the other entries are of the last run.
    """
    found: dict[str, Any] = {}
    if (export := export_in(out)) is not None:
        found["checkpoint"] = checkpoint_status(export)
        if export.latest is None:
            return found
        out = export.latest
    elif (training := training_in(out)) is not None:
        out = training.run
        found["training"] = None if training.tuned is None else training.tuned.to_json()
    record = load_record(out)
    stages = {stage.name: asdict(stage) for stage in stages_of(record, time.time())}
    record["stages"] = [{**entry, **stages[entry["name"]]} for entry in record["stages"]]
    return {**found, **record, "advice": advice(record)}


def checkpoint_status(export: ExportFound) -> dict[str, Any]:
    """Return where the checkpoint of an export is, and its comparison with the original."""
    place = {"folder": str(export.checkpoint), "placed": export.placed}
    return {"verdict": export.verdict(), **place, "parity": export.parity}
