"""What a stage process costs beyond importing its libraries and loading its half; prints a ratio.

Each stage is run twice on the same items in one go: as Penstock runs it, in a child process, and by
calling the stage's function in a process that only imports and loads. Knows no stage's inside.

    python benchmarks/overhead.py [--clips 64] [--repeat 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from artifacts.store import FolderStore
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.launch import ENTRIES, DirectLauncher, Running, StageCall
from flows.running.run import caption
from stages.process.stage_process import Listener

STAGES = ("frames", "encode", "decode")
BARE = """
import json, sys, time
started = time.monotonic()
from importlib import import_module
job = json.loads(open(sys.argv[1]).read())
class Silent:
    def __getattr__(self, name):
        return lambda *args, **values: None
module, _, function = job["entry"].partition(":")
getattr(import_module(module), function)(job["arguments"], Silent())
print(time.monotonic() - started)
import os; sys.stdout.flush(); os._exit(0)
"""
"""Import, load and compute, and nothing else: no job's parent, no events, no sampler, no
journal."""


class Recording:
    """Launches stages as usual and remembers what they were told."""

    def __init__(self, listen: Listener) -> None:
        self._direct = DirectLauncher(listen)
        self.calls: list[StageCall] = []
        self.seconds: dict[str, float] = {}

    def start(self, call: StageCall) -> Running:
        self.calls.append(call)
        return self._direct.start(call)


def staged_seconds(call: StageCall) -> float:
    """Wall seconds of one stage as a run has it: from before its process starts to after it
    ended."""
    started = time.monotonic()
    DirectLauncher(lambda *_: None).start(call).wait()
    return time.monotonic() - started


def bare_seconds(call: StageCall, folder: Path) -> float:
    """Wall seconds of the stage's function in a bare interpreter, its start included."""
    path = folder / f"{call.name}.json"
    path.write_text(json.dumps({"entry": ENTRIES[call.name], "arguments": call.arguments}))
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", BARE, str(path)], check=True, capture_output=True)
    return time.monotonic() - started


def calls_of(folder: Path, clips: int) -> list[StageCall]:
    """What the stages of a real run over so many demo clips are told; its frames are kept."""
    from penstock_demo.clips import write_clips

    write_clips(folder / "clips", clips, 3)
    recorded: list[Recording] = []

    def launcher(listen: Listener) -> Recording:
        recorded.append(Recording(listen))
        return recorded[0]

    config = CaptionConfig(
        sources=(str(folder / "clips"),),
        model="demo",
        out=str(folder / "out"),
        store=str(folder / "store"),
        keep_frames=True,
    )
    caption(config, Display(quiet=True), launcher)
    return [call for call in recorded[0].calls if call.name in STAGES]


def again(call: StageCall, folder: Path) -> None:
    """Take back what the stage published, so that it has the same work once more."""
    kinds: dict[str, list[str]] = {
        "frames": ["frames", "media"],
        "encode": ["features"],
        "decode": ["captions"],
    }
    store = FolderStore(folder / "store")
    for kind in kinds[call.name]:
        for name in list(store.list(kind)):
            store.delete(name)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=64)
    options.add_argument("--repeat", type=int, default=3)
    given = options.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Last stage first: taking back a stage's items must not take away a later one's input.
        for call in reversed(calls_of(folder, given.clips)):
            pairs = []
            for _ in range(given.repeat):
                again(call, folder)
                staged = staged_seconds(call)
                again(call, folder)
                pairs.append((staged, bare_seconds(call, folder)))
            ratio = statistics.median(staged / bare for staged, bare in pairs)
            staged, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
            rows.append({"stage": call.name, "staged": staged, "bare": bare, "ratio": ratio})
    print(f"{given.clips} demo clips, median of {given.repeat} interleaved")
    for row in reversed(rows):
        print(
            f"{row['stage']:8s}as a stage {row['staged']:6.2f} s   "
            f"import, load and compute {row['bare']:6.2f} s   ratio {row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
