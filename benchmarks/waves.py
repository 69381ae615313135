"""A run in waves, as a small disk asks for, beside the same run in one wave, on the CPU; prints how
often each stage was started, and what the waves cost.

The clips and their model are the demo's. Goal: in waves of about five clips, the stages take at
most 1.25 times the CPU of one wave, in one process each. The captions are compared.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from penstock_demo.clips import write_clips
from tests.support.builders.common import cells, heads, met

ROOT = Path(__file__).resolve().parents[1]
CLIPS, TIMES, GOAL = 36, 5, 1.25
BOUNDS = {"one": 1 << 36, "waves": 1 << 20}
"""Name of a run → bytes of a wave."""
START = """
import sys
import flows.core.plan.store_limit
flows.core.plan.store_limit.MAX_WAVE_BYTES = int(sys.argv.pop(1))
from flows.interfaces.cli.main import main
sys.exit(main())
"""


def record_of(folder: Path, name: str, bound: int) -> tuple[float, dict[str, dict[str, Any]]]:
    """Caption the clips in waves of so many bytes; return the seconds, and the record by stage."""
    out = folder / f"{name}-out"
    where = ["--model", "demo", "--out", str(out), "--store", str(folder / f"{name}-store")]
    command = [sys.executable, "-c", START, str(bound), "caption", str(folder / "clips"), *where]
    began = time.monotonic()
    subprocess.run([*command, "--quiet"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    stages = json.loads((out / "run.json").read_text(encoding="utf-8"))["stages"]
    return seconds, {stage["name"]: stage for stage in stages}


def main() -> None:
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        write_clips(folder / "clips", CLIPS, seed=1)
        rows, ratios, written = [], [], set[bytes]()
        for at in range(TIMES):
            cpu = {}
            for name, bound in BOUNDS.items():
                seconds, stages = record_of(folder, f"{name}-{at}", bound)
                written.add((folder / f"{name}-{at}-out" / "captions.jsonl").read_bytes())
                cpu[name] = sum(stage["cpu_seconds"] for stage in stages.values())
                starts = (str(stage["processes"]) for stage in stages.values())
                rows.append(cells([name, *starts, f"{cpu[name]:.1f}", f"{seconds:.1f}"]))
            ratios.append(cpu["waves"] / cpu["one"])
    print(
        heads("run | frames starts | encode starts | decode starts | CPU of stages, s | command, s")
    )
    print("\n".join(rows))
    print(f"captions: {'the same' if len(written) == 1 else 'DIFFERENT'}")
    ratio = median(ratios)
    print(f"waves take {ratio:.2f} x the CPU of one; goal {GOAL}: {met(ratio <= GOAL)}")


if __name__ == "__main__":
    main()
