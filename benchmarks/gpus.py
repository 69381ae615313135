"""What a second GPU is good for: the decode stage on one and on two simulated GPUs, whose processes
wait for each prompt as for a GPU; prints both, and how work is divided if one GPU is free later.

The prompts of 24 clips wait 10 s each. Goals: decode takes at most 1/1.8 of the time of one GPU; if
another program holds the second GPU for the first seconds, each GPU makes at least 8 captions.
"""

import argparse
import fcntl
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks._common import cells, heads, met
from benchmarks.overlap import CARD_UUID, record_of, write_cards
from penstock_demo.clips import write_clips

CLIPS = 24
GOAL = 1.8
HELD_SECONDS = 5.0
LEAST = 8
"""Captions of each GPU if one is free later."""


def decoded(folder: Path, name: str, seconds: float, gpus: int) -> tuple[float, dict[str, int]]:
    """Return how long decode took, and the captions of each GPU."""
    waits = f"0 {1000 * seconds:.0f} 0"
    _, stages, _ = record_of(folder, name, waits, ["--gpus", str(gpus)])
    stage: dict[str, Any] = next(each for each in stages if each["name"] == "decode")
    spans = stage["spans"]
    made = {device: int(facts["items"]) for device, facts in stage["devices"].items()}
    return max(span[1] for span in spans) - min(span[0] for span in spans), made


def hold_second_gpu(locks: Path, seconds: float) -> threading.Thread:
    """Hold the lock of the second GPU as another program does, for so long."""
    file = (locks / f"penstock-{CARD_UUID.format(1)}.lock").open("w")
    fcntl.lockf(file, fcntl.LOCK_EX)

    def release() -> None:
        time.sleep(seconds)
        file.close()

    thread = threading.Thread(target=release)
    thread.start()
    return thread


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="that each prompt waits")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        write_cards(folder / "cards", 2)
        write_clips(folder / "clips", CLIPS, seed=1)
        print(heads("GPUs | decode, s | captions of each"))
        found = {}
        for gpus in (1, 2):
            found[gpus], made = decoded(folder, f"gpus-{gpus}", given.seconds, gpus)
            each = ", ".join(f"{device} {count}" for device, count in made.items())
            print(cells([str(gpus), f"{found[gpus]:.1f}", each]), flush=True)
        thread = hold_second_gpu(folder, HELD_SECONDS)
        taken, made = decoded(folder, "held", 1.0, 2)
        thread.join()
        each = ", ".join(f"{device} {count}" for device, count in made.items())
        print(cells([f"2, one held for {HELD_SECONDS:.0f} s", f"{taken:.1f}", each]))
    ratio = found[1] / found[2]
    print(f"two GPUs: x {ratio:.2f} of one; goal {GOAL}: {met(ratio >= GOAL)}")
    least = min(made.values()) if len(made) == 2 else 0
    print(f"at least {least} captions of a GPU; goal {LEAST}: {met(least >= LEAST)}")


if __name__ == "__main__":
    main()
