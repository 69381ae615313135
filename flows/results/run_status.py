"""Collects for programs the state of the run, export or training in a folder. Reads files alone."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from flows.results.export_result import ExportFound, export_in
from flows.results.rounds import rounds_in, summary_json
from flows.results.run_read import load_record
from flows.results.status import advice, stages_of
from flows.results.tuned import TrainingFound, training_in


class RunFolder(NamedTuple):
    """The export or training that a folder holds, and the folder of its last run."""

    export: ExportFound | None
    training: TrainingFound | None
    run: Path | None
    """None: an export that has no run yet."""


def run_folder(out: Path) -> RunFolder:
    """Return what a folder holds. Raises UsageError, EnvironmentFault."""
    if (export := export_in(out)) is not None:
        return RunFolder(export, None, export.latest)
    training = training_in(out)
    return RunFolder(None, training, out if training is None else training.run)


def run_status(out: Path) -> dict[str, Any]:
    """Return the object that `penstock status --json` prints. Raises UsageError, EnvironmentFault.

    An export adds `checkpoint`, a training `training`, and learning `rounds`; the other entries are
    of the last run.
    """
    export, training, run = run_folder(out)
    found: dict[str, Any] = {}
    if export is not None:
        place = {"folder": str(export.checkpoint), "placed": export.placed}
        found["checkpoint"] = {"verdict": export.verdict(), **place, "parity": export.parity}
    if training is not None:
        found["training"] = None if training.tuned is None else training.tuned.to_json()
    if run is None:
        return found
    record = load_record(run)
    if rounds := list(summary_json(rounds_in(out))):
        found["rounds"] = rounds
    stages = {stage.name: asdict(stage) for stage in stages_of(record, time.time())}
    record["stages"] = [{**entry, **stages[entry["name"]]} for entry in record["stages"]]
    return {**found, **record, "advice": advice(record)}
