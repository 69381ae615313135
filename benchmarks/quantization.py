"""What each precision costs the demo model: its score on clips it never saw, how often its words
are those of 32 bit, and how far its logits go from those; prints a table.

Every row is a whole run: clips are cut, encoded and decoded by stages that load their halves in
that row's precision. Then the words of the first row are put through each row's language half,
which sees the features of its own run.

    python -m benchmarks.quantization [--clips 200] [--seed 11] [--exports]

With `--exports` also of checkpoints that `penstock export` wrote: benchmarks/_exports.py.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._common import heads
from benchmarks._exports import print_exports
from benchmarks._precisions import ROWS, line, measure
from penstock_demo.clips import write_clips

HEADS = (
    "precision | vision | language | weights | exact | captions as fp32 | tokens as fp32"
    " | divergence"
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=200)
    options.add_argument("--seed", type=int, default=11)
    options.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    options.add_argument("--exports", action="store_true", help="and of exported checkpoints")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder, "clips")
        truths = write_clips(clips, given.clips, given.seed)
        (clips / "truth.jsonl").unlink()  # not a list of sources
        first, tokens = measure("fp32", clips, truths, None)
        print(f"{given.clips} clips, seed {given.seed}, {sum(map(len, tokens))} tokens")
        print(f"{heads(HEADS)}\n{line(first, first, tokens)}")
        for name in (name for name in given.rows if name != "fp32"):
            row, _ = measure(name, clips, truths, tokens)
            print(line(row, first, tokens), flush=True)
        if given.exports:
            print_exports(clips, truths, first, tokens)


if __name__ == "__main__":
    main()
