"""`run.json`: what a run planned, did and cost, rewritten while it works; a report, never what
resume relies on."""

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault
from artifacts.files import write_json
from stages.process.stage_process import StageOutcome

STAGES = ("frames", "encode", "decode")
REWRITE_SECONDS = 2.0
"""How often a running run rewrites its record at the most."""
RECORDED = ("penstock", "torch", "transformers", "accelerate", "bitsandbytes", "av", "prefect")


class RunRecord:
    """What `penstock status` and people read."""

    def __init__(self, out: Path) -> None:
        self.path = out / "run.json"
        self._written = 0.0
        self._lock = threading.RLock()
        self.value: dict[str, Any] = {
            "state": "running",
            "pid": os.getpid(),
            "started": now(),
            "updated": now(),
            "plan": {},
            "rungs": [],
            "stages": [_empty(name) for name in STAGES],
            "media": {"total": 0, "failed": 0},
            "captions": 0,
            "versions": versions(),
            "error": "",
        }

    def stage(self, name: str) -> dict[str, Any]:
        """The record of one stage, to be changed in place."""
        found: dict[str, Any] = next(s for s in self.value["stages"] if s["name"] == name)
        return found

    def expect(self, name: str, total: int, done: int) -> None:
        """So many items a stage is known to have in the whole run, and so many are in the store."""
        entry = self.stage(name)
        entry.update(total=total, before=max(0, done - entry["items"]))

    def live(self, name: str, items: int) -> None:
        """Items published by the process that runs now, not yet in an outcome.

        Told from a stage's own thread: a disk that is full will be told by the stage itself.
        """
        if name in STAGES:
            with self._lock, contextlib.suppress(EnvironmentFault):
                self.stage(name)["running"] = items
                self.write(force=False)

    def add(self, outcome: StageOutcome, *, attention: str, precision: Mapping[str, str]) -> None:
        """Count one finished stage process in; a stage may take several, one a wave."""
        if outcome.name not in STAGES:
            return
        with self._lock:
            self._count(outcome, attention, precision)
            self.write(force=True)

    def _count(self, outcome: StageOutcome, attention: str, precision: Mapping[str, str]) -> None:
        entry = self.stage(outcome.name)
        offset = entry["seconds"]
        entry["processes"] += 1
        entry["running"] = 0
        for name in ("items", "tokens", "seconds", "cpu_seconds"):
            entry[name] += getattr(outcome, name)
        for name in ("peak_host_bytes", "peak_device_bytes"):
            entry[name] = max(entry[name], getattr(outcome, name))
        entry["baseline_before_bytes"] = outcome.baseline_before_bytes
        entry["baseline_after_bytes"] = outcome.baseline_after_bytes
        entry["timeline"] += [
            [round(offset + t, 2), host, device] for t, host, device in outcome.timeline
        ]
        entry["warnings"] += outcome.warnings
        entry["notes"] = outcome.notes
        entry["attention"] = attention
        entry["precision"] = dict(precision)

    def finish(self, state: str, error: str = "") -> None:
        """The run's last word: done, failed or interrupted."""
        self.value.update(state=state, error=error)
        self.write(force=True)

    def write(self, *, force: bool) -> None:
        with self._lock:
            if not force and time.monotonic() - self._written < REWRITE_SECONDS:
                return
            self._written = time.monotonic()
            self.value["updated"] = now()
            write_json(self.path, self.value)


def _empty(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "items": 0,
        "total": 0,
        "before": 0,
        "running": 0,
        "processes": 0,
        "tokens": 0,
        "seconds": 0.0,
        "cpu_seconds": 0.0,
        "peak_host_bytes": 0,
        "peak_device_bytes": 0,
        "baseline_before_bytes": 0,
        "baseline_after_bytes": 0,
        "attention": "",
        "precision": {},
        "timeline": [],
        "warnings": [],
        "notes": {},
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what decides bytes; recorded, not keyed."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
