"""Shows that a run under a worker ends complete whatever is killed, and that nothing finished is
made twice: kills the stage, the flow, the worker, both and the server at several moments each.

    python -m scripts.fault_check [--moments 5] [--kinds child,flow,worker,…]
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock_demo.clips import write_clips
from scripts.faults import CLIPS, Faults
from scripts.prefect_stack import prefect_stack
from scripts.stage_processes import CheckFailed

MOMENTS = (
    ("encode", 1),
    ("decode", CLIPS // 2),
    ("frames", 1),
    ("encode", CLIPS // 2),
    ("decode", 1),
)
"""(stage, items it has published) at which something is killed; the test takes the first."""


def main() -> int:
    """0 when after every fault the run ended complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=5, choices=range(1, 6), help="each [5]")
    kinds = ("child", "flow", "worker", "both", "server", "away", "gone", "cancel")
    parser.add_argument("--kinds", default=",".join(kinds), help="[%(default)s]")
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as clips, prefect_stack() as stack:
        write_clips(Path(clips), CLIPS, seed=11)
        faults = Faults(stack, Path(clips))
        for stage, item in MOMENTS[: given.moments]:
            for kind in given.kinds.split(","):
                fault: Callable[[str, int], Any] = getattr(faults, kind)
                try:
                    fault(stage, item)
                except CheckFailed as error:
                    failed += 1
                    faults.clear()
                    print(f"FAILED: {kind} at item {item} of {stage}: {error}", flush=True)
        print(
            f"{faults.held} of {faults.held + failed} moments: complete, same bytes, no item twice"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
