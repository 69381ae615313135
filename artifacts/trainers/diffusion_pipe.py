"""Writes data sets for diffusion-pipe: a folder of images and one of videos, each with its
captions, and a TOML file that lists them.

Source: `DirectoryDataset` in tdrussell/diffusion-pipe `utils/dataset.py`: every file of a folder is
used, and `captions.json` holds a list of captions by file name.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from artifacts.subtitles import one_line
from artifacts.trainers.form import (
    FOLDERS,
    PILLOW,
    TrainerEntry,
    TrainerForm,
    of_kind,
    toml_text,
)

CAPTIONS, CONFIG = "captions.json", "dataset.toml"
VIDEO_SUFFIXES = frozenset([
    "264", "265", "3g2", "3gp", "asf", "avi", "dv", "f4v", "flv", "gxf", "h264", "h265", "hevc",
    "ivf", "m1v", "m2t", "m2ts", "m2v", "m4v", "mj2", "mjpeg", "mjpg", "mk3d", "mkv", "mov",
    "mp4", "mpeg", "mpg", "mts", "mxf", "nut", "obu", "ogv", "rm", "ts", "vob", "webm", "wmv",
    "wtv", "y4m",
])  # fmt: skip
"""Suffixes of videos by imageio's `video_extensions`; the trainer takes others for pictures."""


def diffusion_pipe_files(entries: Sequence[TrainerEntry], folder: Path) -> dict[str, str]:
    """Return the captions of each kind that there is, and the dataset configuration."""
    config = f"""\
# diffusion-pipe: dataset = {toml_text(str(folder / CONFIG))} in the training configuration
resolutions = [512]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = [1, 33]
"""
    files: dict[str, str] = {}
    for kind, name in FOLDERS.items():
        rows = of_kind(entries, kind)
        if rows:
            # ASCII: the trainer opens the file in whatever encoding its machine has.
            captions = {row.name: [one_line(each.caption) for each in row.rows] for row in rows}
            files[f"{name}/{CAPTIONS}"] = json.dumps(captions, indent=1) + "\n"
            config += f"\n[[directory]]\npath = {toml_text(str(folder / name))}\nnum_repeats = 1\n"
    return {**files, CONFIG: config}


DIFFUSION_PIPE = TrainerForm(
    write=diffusion_pipe_files,
    names=(*(f"{name}/{CAPTIONS}" for name in FOLDERS.values()), CONFIG),
    folders=FOLDERS,
    own_media=True,
    several=True,
    suffixes={"image": PILLOW, "video": VIDEO_SUFFIXES},
)
