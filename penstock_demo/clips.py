"""Writes mp4 clips from a seed, with their captions in `truth.jsonl`:
`python -m penstock_demo.clips FOLDER`.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from penstock_demo.render import write_clip
from penstock_demo.scoring import Truth
from penstock_demo.world import caption, sample_clip

NEVER_SHARE: Final = 0.25
"""Share of clips that contain an untrained colour and shape pair."""


def write_clips(folder: Path, count: int, seed: int) -> list[Truth]:
    """Write clips and their `truth.jsonl` into the folder; the same seed gives the same clips."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    digits = max(2, len(str(count)))
    never = round(count * NEVER_SHARE)
    splits = ["never"] * never + ["trained"] * (count - never)
    rng.shuffle(splits)
    truths = []
    for number, split in enumerate(splits, 1):
        spec = sample_clip(rng, "never" if split == "never" else "trained")
        name = f"clip-{number:0{digits}d}.mp4"
        write_clip(spec, folder / name)
        truths.append(Truth(file=name, caption=caption(spec), trained=spec.is_trained))
    lines = [json.dumps(asdict(truth)) + "\n" for truth in truths]
    (folder / "truth.jsonl").write_text("".join(lines), encoding="utf-8")
    return truths


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m penstock_demo.clips", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    write_clips(chosen.folder, chosen.count, chosen.seed)


if __name__ == "__main__":
    main()
