"""Captions that are decoded while other clips are encoded, on a simulated GPU; prints what of the
waits for it is left.

A run waits 60 ms for each clip that is encoded, 40 ms for each prompt and 10 ms for each step of 64
rows, as a GPU would compute. The same run without waits takes what is left: cutting, and tensors on
the CPU. Goal: the waits add at most 1.2 times those of the stage that waits longer. One stage after
the other would add both. The time is that from the start of the first stage to the end of the last.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from penstock_demo.clips import write_clips
from tests.support.builders.common import cells, heads, met
from tests.support.builders.waits import WAITS

ROOT = Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "support" / "fake_gpu"
CARD: dict[str, object] = {
    "name": "NVIDIA GeForce RTX 3070",
    "uuid": "GPU-fa4e0000-1111-2222-3333-444455556666",
    "total_bytes": 8 << 30,
    "capability": [8, 6],
    "mig": [],
    "others": {},
}
ON, OFF = "60 40 10", "0 0 0"
CLIPS, TIMES, GOAL = 200, 3, 1.2


def write_card(folder: Path) -> None:
    """Write the machine that the simulated GPU belongs to."""
    folder.mkdir()
    machine = json.dumps({"gpus": [CARD], "cuda_order": [], "graphs": {}})
    (folder / "machine.json").write_text(machine, encoding="utf-8")
    (folder / "osrelease").write_text("6.8.0-90-generic\n", encoding="utf-8")


def run(folder: Path, name: str, waits: str) -> tuple[float, Counter[str]]:
    """Return the seconds of the stages, and what each of them waited."""
    seconds, stages, waited = record_of(folder, name, waits)
    spans = [span for stage in stages for span in stage["spans"]]
    found: Counter[str] = Counter()
    for line in waited.read_text(encoding="utf-8").splitlines():
        stage, waited_seconds = line.split()
        found[stage] += float(waited_seconds)  # type: ignore[assignment]
    of_stages = max(span[1] for span in spans) - min(span[0] for span in spans)
    each = [
        f"{stage['name']} {stage['spans'][0][0]:.1f} to {stage['spans'][-1][1]:.1f}"
        f" ({stage['cpu_seconds']:.1f} of a core)"
        for stage in stages
    ]
    print(f"{name}: {of_stages:.1f} s, the command {seconds:.1f} s; {', '.join(each)}", flush=True)
    return of_stages, found


def record_of(folder: Path, name: str, waits: str) -> tuple[float, list[dict[str, Any]], Path]:
    """Caption the clips; return the seconds that took, the record of each stage, and the file with
    what was waited."""
    out, waited = folder / f"{name}-out", folder / f"{name}-waits"
    paths = [str(FAKE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{n: v for n, v in os.environ.items() if not n.startswith("CUDA_")},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FAKE_GPU": str(folder / "cards"),
        "PENSTOCK_LOCKS": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        WAITS: f"{waits} {waited}",
        # Two stages with a thread per core each would wait for each other: without waits the most.
        "OMP_NUM_THREADS": "1",
    }
    where = ["--model", "demo", "--out", str(out), "--store", str(folder / f"{name}-store")]
    command = ["caption", str(folder / "clips"), *where, "--max-new-tokens", "80", "--quiet"]
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "tests.support.builders.waits", *command],
        env=environment,
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - began
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    stages: list[dict[str, Any]] = record["stages"]
    return seconds, stages, waited


def main() -> None:
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        write_card(folder / "cards")
        write_clips(folder / "clips", CLIPS, seed=1)
        rows, ratios = [], []
        for at in range(TIMES):
            without, _ = run(folder, f"without-{at}", OFF)
            taken, waited = run(folder, f"with-{at}", ON)
            longest = max(waited.values())
            ratios.append((taken - without) / longest)
            figures = (without, taken, taken - without, waited["encode"], waited["decode"])
            rows.append(cells([*(f"{each:.1f}" for each in figures), f"{ratios[-1]:.2f}"]))
    print(
        heads("without waits, s | with, s | more, s | encode waits, s | decode waits, s | x longer")
    )
    print("\n".join(rows))
    ratio = median(ratios)
    print(f"waits add {ratio:.2f} x the longer ones; goal {GOAL}: {met(ratio <= GOAL)}")


if __name__ == "__main__":
    main()
