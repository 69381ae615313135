"""How long frames and encoding take beside each other, with an encoder that sleeps as long at each
chunk as the frames stage.

A long video is captioned by real processes that sleep at each chunk: with the
encoder beside the frames stage, and after it. Prints seconds, the longer stage, and the peaks of
both processes with what was planned.

    python -m benchmarks.overlap [--chunks 40] [--seconds 0.5] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import MIB, cells, heads, met
from flows.results.status import stages_of
from tests.support.media import write_video
from tests.support.slow_tower import SECONDS

GOAL = 1.15
"""Wall seconds of both, at most, for each second of the longer one."""
CODE = """import sys
import flows.running.overlap
from flows.machine.launch import ENTRIES
from tests.support.slow_tower import SLOW
ENTRIES.update(SLOW)
if {after}:
    flows.running.overlap.can_overlap = lambda *_: False
from flows.cli.main import main
sys.exit(main())"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--chunks", type=int, default=40)
    options.add_argument("--seconds", type=float, default=0.5, help="of a chunk, in either stage")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "clips").mkdir()
        write_video(folder / "clips" / "a.mp4", ticks=range(given.chunks * 30), size=(240, 320))
        for at in range(given.rounds):
            for after in (False, True):
                rows.append((after, run(folder, f"{at}{after}", given.seconds, after=after)))
    print("\n".join(table(rows)))


def run(folder: Path, name: str, seconds: float, *, after: bool) -> dict[str, Any]:
    """Caption the video, and return the record of the run."""
    out = folder / name
    command = ["caption", str(folder / "clips"), "--model", "demo", "--chunk", "1"]
    command += ["--out", str(out), "--store", str(folder / f"store-{name}")]
    subprocess.run(
        [sys.executable, "-c", CODE.format(after=after), *command],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, SECONDS: str(seconds)},
    )
    record: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return record


def table(rows: Sequence[tuple[bool, dict[str, Any]]]) -> list[str]:
    """The medians of both ways."""
    lines = [heads("encoding | frames, s | encode, s | both, s | ÷ longer | peaks, MiB | planned")]
    ratios = {}
    longer = 0.0
    for after in (True, False):
        found = [figures(record) for each, record in rows if each is after]
        cut, encoded, both, peak, plan = map(statistics.median, zip(*found, strict=True))
        longer = longer or max(cut, encoded)  # of stages that have the machine to themselves
        ratios[after] = both / longer
        way = "after all frames" if after else "beside"
        numbers = (f"{cut:.1f}", f"{encoded:.1f}", f"{both:.1f}", f"{ratios[after]:.2f}")
        lines.append(cells([way, *numbers, round(peak / MIB), round(plan / MIB)]))
    return [*lines, f"goal of beside, at most {GOAL} x the longer: {met(ratios[False] <= GOAL)}"]


def figures(record: dict[str, Any]) -> tuple[float, ...]:
    """Seconds of frames, of encoding and of both, then the sums of peaks above the imports, taken
    and planned."""
    spans = [stage["spans"][0] for stage in record["stages"][:2]]
    stages = stages_of(record, time.time())[:2]
    taken = sum(stage.taken_bytes for stage in stages)
    planned = sum(stage.planned_bytes for stage in stages)
    both = max(span[1] for span in spans) - min(span[0] for span in spans)
    return (*(span[1] - span[0] for span in spans), both, taken, planned)


if __name__ == "__main__":
    main()
