"""Writes what the trainers of LTX-Video and LTX-2 read: lines of media and captions.

Source: `MediaDataset` in Lightricks/LTX-2 `packages/ltx-trainer/scripts/process_videos.py`, and the
same in Lightricks/LTX-Video-Trainer: paths must lie below the folder of the lines, what is no PNG
or JPEG is opened as a video, and what is made of a file is named by its path without suffix.
"""

from collections.abc import Sequence
from pathlib import Path

from artifacts.trainers.form import FOLDERS, TrainerEntry, TrainerForm, json_line

LINES = "dataset.jsonl"


def ltx_files(entries: Sequence[TrainerEntry], folder: Path) -> dict[str, str]:
    """Return the lines, which may mix pictures and videos."""
    rows = ({"caption": entry.caption, "media_path": entry.path} for entry in entries)
    return {LINES: "".join(map(json_line, rows))}


LTX = TrainerForm(
    write=ltx_files,
    names=(LINES,),
    folders=FOLDERS,
    own_media=True,
    suffixes={"image": frozenset({"png", "jpg", "jpeg"})},
)
