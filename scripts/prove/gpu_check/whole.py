"""Runs of the command line on the device, and what their records say."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import RunRecord
from flows.outputs.record.stage_record import StageRecord
from flows.outputs.run_status import stages_of
from scripts.prove.gpu_check.rows import DEMO, Row, Setting, mib, row
from tests.support.builders.common import PENSTOCK


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run that has ended."""

    out: Path
    store: Path
    code: int
    words: str
    """All that it said."""
    seconds: float
    """From its start to its end."""

    @property
    def exit_report(self) -> str:
        lines = self.words.strip().splitlines()
        return lines[-1] if lines else "not a word"

    @property
    def record(self) -> RunRecord:
        """Its run.json. Raises UsageError where there is none."""
        return load_record(self.out)

    def stage(self, name: str) -> StageRecord:
        """What its record says of a stage. Raises StopIteration for one that was not run."""
        return self.record.stage(name)

    @property
    def captions(self) -> dict[tuple[str, float], str]:
        """(file, start) → caption."""
        lines = (self.out / "captions.jsonl").read_text().splitlines()
        return {(c["media_path"], c["start"]): c["caption"] for c in map(json.loads, lines)}

    @property
    def features(self) -> dict[tuple[str, str], str]:
        """(namespace, key) → digest of the bytes of the features in its store."""
        store, found = open_store(str(self.store)), {}
        for folder in (self.store / "features").glob("*/*"):
            record_set = RecordSet(store, "features", folder.name)
            for key in sorted(record_set.keys()):
                digest = hashlib.sha256(bytes(record_set.read(key).payload)).hexdigest()
                found[folder.name, key] = digest
        return found


def command(
    setting: Setting, name: str, *options: str, store: str = "", verb: str = "caption"
) -> list[str]:
    """The demo model over its samples, into a folder of that name, unless `options` name others."""
    out, kept = setting.folder / name, setting.folder / f"{store or name}-store"
    messages = [*PENSTOCK, verb, "--out", str(out), "--store", str(kept)]
    named = [] if "--model" in options else [str(setting.samples), "--model", DEMO]
    return [*messages, *named, *options]


def environment(**changes: str) -> dict[str, str]:
    """Without the server of whoever calls."""
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {**kept, **changes}


def run(
    setting: Setting,
    name: str,
    *options: str,
    env: Mapping[str, str] | None = None,
    **how: str,
) -> Run:
    """That run, which another check may have made already. `how` is of `command`."""
    kept = setting.folder / f"{name}.ended.json"
    if not kept.exists():
        began = time.monotonic()
        done = subprocess.run(
            command(setting, name, *options, **how),
            env=environment(**(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        kept.write_text(json.dumps([done.returncode, done.stdout, seconds]))
    code, words, seconds = json.loads(kept.read_text())
    store = setting.folder / f"{how.get('store') or name}-store"
    return Run(out=setting.folder / name, store=store, code=code, words=words, seconds=seconds)


def good_run(setting: Setting, name: str, *options: str, **how: Any) -> Run:
    """A run that must end well. Raises RuntimeError with its last words."""
    done = run(setting, name, *options, **how)
    if done.code:
        raise RuntimeError(f"the run {name} ended with {done.code}: {done.exit_report}")
    return done


ON_DEVICE = ("encode", "decode")
PLAN_SHARE = 0.08
"""How far a plan may be from what was taken, as on a CPU."""


def alike(name: str, one: Mapping[Any, str], other: Mapping[Any, str], share: float = 1.0) -> Row:
    """How many of all are equal."""
    every = one.keys() | other.keys()
    same = sum(one.get(key) == other.get(key) for key in every)
    expected = "all equal" if share == 1.0 else f"{share:.0%} equal or more"
    good = bool(every) and same >= share * len(every)
    return row(name, expected, f"{same} of {len(every)} equal", good)


def peaks(batch: int, record: RunRecord) -> Iterator[Row]:
    """A row a stage."""
    planned = {stage.stage: stage for stage in record.plan.memory.stages}
    for stage in stages_of(record, time.time()):
        if stage.name in ON_DEVICE and stage.taken_bytes:
            plan, taken = planned[stage.name].peak_bytes, stage.taken_bytes
            off = plan / taken - 1
            rungs = [rung for rung in record.rungs if rung.stage == stage.name]
            lower = "".join(f"; went down to {rung.name}" for rung in rungs)
            found = f"{mib(taken)}, the plan is {off:+.1%} off{lower}"
            name = f"peak of {stage.name}, {planned[stage.name].name} (asked for {batch})"
            expected = f"{mib(plan)} within {PLAN_SHARE:.0%}"
            good = abs(off) <= PLAN_SHARE and not rungs
            yield row(name, expected, found, good, bytes=taken, planned_bytes=plan)
