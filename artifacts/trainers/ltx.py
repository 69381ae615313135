"""Writes data sets for the trainers of LTX-Video and LTX-2: JSON lines of media and captions.

Source: `MediaDataset` in Lightricks/LTX-2 `packages/ltx-trainer/scripts/process_videos.py`, and the
same in Lightricks/LTX-Video-Trainer. Paths must lie below the folder of the JSON lines. A file that
is neither PNG nor JPEG is opened as a video. Derived files are named by the media path without
suffix.
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
