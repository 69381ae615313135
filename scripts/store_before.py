"""Makes tests/data/before: a folder of media, and the store and outputs of runs over them, by which
tests/test_flows_encode_ways.py holds later versions to what earlier ones stored. Made anew only
where finished work is meant to be done again, as when a stage's OUTPUT_VERSION rises.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.media import write_video

ROOT = Path(__file__).resolve().parent.parent
BEFORE = ROOT / "tests" / "data" / "before"
OPTIONS = ("--model", "demo", "--precision", "fp32", "--chunk", "2", "--store", "store")
PROMPTS = {"first": (), "second": ("--prompt", "Short caption.")}
"""Folder of a run → what else it is asked."""
FORMATS = ("--format", "txt,vtt,srt,csv")
LEFT_OUT = ("tmp", "claims", "logs", "digests.jsonl", "written.jsonl", "jobs", "signing-key-*")
"""What a store holds of the machine that it lies on."""


def main() -> None:
    """Write the folder in place of the one that is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_media(folder / "clips")
        for out, more in PROMPTS.items():
            command = [sys.executable, "-m", "flows.cli.main", "caption", "clips", *OPTIONS]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(
                [*command, "--out", out, *more, *FORMATS], cwd=folder, check=True, env=environment
            )
        shutil.rmtree(BEFORE, ignore_errors=True)
        for part in ("clips", "store", *PROMPTS):
            ignored = shutil.ignore_patterns(*LEFT_OUT, "run.json", "media.jsonl", ".*")
            shutil.copytree(folder / part, BEFORE / part, ignore=ignored)
    print(sum(path.stat().st_size for path in BEFORE.rglob("*") if path.is_file()) >> 10, "KiB")


def write_media(folder: Path) -> None:
    """A video of three chunks, and two pictures, of which one is larger than the demo sees it."""
    folder.mkdir()
    write_video(folder / "long.mp4", ticks=range(150))
    rows, columns = np.mgrid[0:300, 0:400]
    large = np.stack([rows % 256, columns % 256, (rows + columns) % 256], 2).astype(np.uint8)
    Image.fromarray(large).save(folder / "large.png")
    Image.fromarray(large[:40, :60].copy()).save(folder / "small.png")


if __name__ == "__main__":
    main()
