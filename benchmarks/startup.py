"""A whole run by the command, its stages forked from one process against each importing for itself:
a first run over the demo's clips, and another prompt after it."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import sys
from stages.process import forking
if sys.argv.pop(1) == "fresh":
    forking.LEAST_FREE_BYTES = 1 << 60
from penstock.start import main
sys.exit(main())
"""
WAYS = ("forked", "fresh")


def seconds(way: str, folder: Path, *more: str) -> float:
    """Return the wall seconds of one command."""
    where = ["--out", str(folder / "out"), "--store", str(folder / "store"), "--quiet"]
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", RUN, way, "caption", "demo/samples", "--model=demo", *where, *more],
        cwd=ROOT,
        check=True,
    )
    return time.monotonic() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeat", type=int, default=3)
    repeats = options.parse_args().repeat
    runs: dict[tuple[str, str], list[float]] = {}
    for number in range(repeats):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as name:
                prompt = ("--prompt", f"What moves? {number}")
                runs.setdefault(("first run", way), []).append(seconds(way, Path(name)))
                runs.setdefault(("new prompt", way), []).append(seconds(way, Path(name), *prompt))
    print(f"the demo's clips, median of {repeats} interleaved")
    for what in ("first run", "new prompt"):
        forked, fresh = (statistics.median(runs[what, way]) for way in WAYS)
        ratio = fresh / forked
        print(f"{what:12s}forked {forked:5.1f} s   fresh {fresh:5.1f} s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
