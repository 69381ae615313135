"""Runs of the command line on the device, and what their records say."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.packs import RecordSet
from artifacts.store import open_store
from benchmarks._common import PENSTOCK
from scripts.gpu_check.setting import DEMO, Setting


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
    def record(self) -> dict[str, Any]:
        """Its run.json; empty where there is none."""
        path = self.out / "run.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def stage(self, name: str) -> dict[str, Any]:
        """What its record says of a stage. Raises StopIteration for one that was not run."""
        return next(stage for stage in self.record["stages"] if stage["name"] == name)

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
    told = [*PENSTOCK, verb, "--out", str(out), "--store", str(kept)]
    named = [] if "--model" in options else [str(setting.samples), "--model", DEMO]
    return [*told, *named, *options]


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
