"""Running `penstock` as a user does, disturbing it, and reading what it left behind."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.records.packs import read_header
from artifacts.records.store import FolderStore
from flows.core.options.commands import CaptionConfig
from scripts.run.stage_processes import descendants, stage_of
from tests.support import held

PENSTOCK = [sys.executable, "-m", "flows.interfaces.cli.main"]
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 280
"""Below the test's own time limit, so that a hanging program is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run reads and writes."""

    clips: Path
    out: Path
    store: Path
    model: str = "demo"
    """Empty: the command has no such option."""
    verb: str = "caption"
    """The command."""

    def command(self, *more: str) -> list[str]:
        where = ["--out", str(self.out), "--store", str(self.store)]
        where += ["--model", self.model] if self.model else []
        return [*PENSTOCK, self.verb, str(self.clips), *where, *more]

    def config(self, **options: Any) -> CaptionConfig:
        """Return the configuration of captions, with these other options."""
        where = {"sources": (str(self.clips),), "out": str(self.out), "store": str(self.store)}
        return CaptionConfig(model=self.model, **{**where, **options})

    def run(self, *more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*more),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def captions(self) -> list[dict[str, Any]]:
        return read_lines(self.out / "captions.jsonl")

    def failures(self) -> list[dict[str, Any]]:
        return read_lines(self.out / "failures.jsonl")

    def stages(self) -> dict[str, dict[str, Any]]:
        record = json.loads((self.out / "run.json").read_text(encoding="utf-8"))
        return {stage["name"]: stage for stage in record["stages"]}

    def journal(self, stage: str) -> Counter[str]:
        """Key → how often the stage says it published it, over all runs."""
        path = self.out / "logs" / f"{stage}.items.jsonl"
        return Counter(line["key"] for line in read_lines(path)) if path.exists() else Counter()

    def stored(self, kind: str) -> dict[str, str]:
        """Key → digest of the stored payload and description; every key once."""
        store = FolderStore(self.store)
        found: dict[str, str] = {}
        for name in store.list(kind):
            for key, place in read_header(store, name):
                assert key not in found, f"{key} was published twice"
                meta = json.dumps(place.meta, sort_keys=True)
                found[key] = hashlib.sha256((meta + place.checksum).encode()).hexdigest()
        return found


def place_below(folder: Path, clips: Path | None = None, model: Path | str = "demo") -> Place:
    """A place whose outputs and store, and clips unless others are given, lie below a folder."""
    out, store = folder / "out", folder / "store"
    return Place(clips=clips or folder / "clips", out=out, store=store, model=str(model))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kill_at(place: Place, stage: str, item: int, victim: str, *more: str) -> int:
    """Start a run and send SIGKILL when `stage` has published `item` items; it waits there. The
    signal goes to the stage's process (`child`), to the server that it was forked from (`server`),
    or to the group of the command itself (`group`). Returns the command's exit status."""
    mark = place.out.with_name("held")
    mark.unlink(missing_ok=True)
    running = subprocess.Popen(
        [sys.executable, "-m", held.MODULE, *place.command("--json", *more)[len(PENSTOCK) :]],
        cwd=ROOT,
        env=held.held_environment(stage, item, mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    published = 0
    with running.stdout:
        for line in running.stdout:
            event = json.loads(line)
            published += event["event"] == "item" and event["stage"] == stage
            if published == item:
                if victim == "group":
                    children = descendants(running.pid)
                    os.killpg(running.pid, signal.SIGKILL)
                    wait_gone(children)
                else:
                    kill_child(running.pid, stage if victim == "child" else "")
                break
        running.stdout.read()
    return running.wait(SECONDS)


def kill_child(pid: int, stage: str) -> None:
    """Kill the processes below `pid` that run the stage (with an empty name: those that run none).
    Linux may leave processes out of the list of children while one of them ends, so repeat."""
    deadline = time.monotonic() + 10
    while not (found := [child for child in descendants(pid) if stage_of(child) == stage]):
        assert time.monotonic() < deadline, f"no process runs {stage or 'no stage'}"
        time.sleep(0.02)
    for child in found:
        os.kill(child, signal.SIGKILL)


def wait_gone(pids: list[int], seconds: float = 10.0) -> None:
    """Wait until the processes have ended; a process that outlives its parent is an error."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        while os.path.exists(f"/proc/{pid}"):
            assert time.monotonic() < deadline, f"process {pid} outlives its parent"
            time.sleep(0.02)
