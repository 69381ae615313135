"""Writes data sets for Hugging Face `datasets`: one of images and one of videos, each with a card.

Source: `FolderBasedBuilder` in huggingface/datasets `src/datasets/packaged_modules`, whose
`imagefolder` and `videofolder` list the suffixes. One data set is read by one of the two, so images
and videos are separate data sets.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from artifacts.subtitles import one_line
from artifacts.tables import utf8
from artifacts.trainers.form import (
    FOLDERS,
    PILLOW,
    TrainerEntry,
    TrainerForm,
    json_line,
    of_kind,
)

METADATA, CARD = "metadata.jsonl", "README.md"
READ = {"image": PILLOW - {"avif"}, "video": frozenset({"avi", "mkv", "mov", "mp4", "mpeg"})}
"""Suffixes that its two builders list."""
TASKS = {"image": "text-to-image", "video": "text-to-video"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The hub's words for how many rows there are, each with the number that it ends before."""


def hf_files(entries: Sequence[TrainerEntry], folder: Path) -> dict[str, str]:
    """Return metadata and card of each kind that there is."""
    files: dict[str, str] = {}
    for kind, name in FOLDERS.items():
        rows = of_kind(entries, kind)
        if rows:
            # The reader wants the same columns in every line.
            named = sorted({each.name for row in rows for each in row.rows if each.name})
            lines = "".join(json_line(_line(row, named)) for row in rows)
            content = hashlib.sha256(lines.encode("utf-8", errors="replace")).hexdigest()
            files[f"{name}/{METADATA}"] = lines
            files[f"{name}/{CARD}"] = _card(kind, rows, content[:16])
    return files


def _line(entry: TrainerEntry, named: Sequence[str]) -> dict[str, object]:
    row, texts = entry.row, {each.name: one_line(each.caption) for each in entry.rows}
    line: dict[str, object] = {
        "file_name": entry.name,
        "text": utf8(entry.caption),
        "media_path": utf8(row.media_path),
        "model": _name(row.model),
        "prompt": utf8(row.prompt),
        "start": float(row.start),
        "end": float(row.end),
    }
    # A prompt may be called as one of these columns is.
    of_each = {f"caption_{name}" if name in line else name: texts.get(name, "") for name in named}
    return {**line, **{column: utf8(text) for column, text in of_each.items()}}


def _name(model: str) -> str:
    """Return what a model is called: where it lies on this machine is nobody else's matter."""
    return PurePosixPath(model).name if model.startswith("/") else model


def _card(kind: str, rows: Sequence[TrainerEntry], content: str) -> str:
    """Return the card of some rows. `datasets` keeps what it loaded by the name of the folder and
    the configuration, so that says what the rows are: else it would load those of another run."""
    size = next((word for below, word in SIZES if len(rows) < below), "n>1M")
    models = "\n".join(f"- `{model}`" for model in sorted({_name(row.row.model) for row in rows}))
    return f"""\
---
task_categories:
- {TASKS[kind]}
modalities:
- {kind}
- text
size_categories:
- {size}
configs:
- config_name: default
  description: rows {content}
  data_files:
  - split: train
    path: "*"
---

# Captioned {FOLDERS[kind]}

{len(rows):,} {FOLDERS[kind] if len(rows) > 1 else kind}, each with a caption in `text`, written by:

{models}

A row is about the part from `start` to `end` (seconds) of the file `media_path`. Its `prompt` is
the question that `text` answers.

    datasets.load_dataset("FOLDER")     # this folder, from outside it
    datasets.load_dataset("USER/NAME")  # once it is on the hub
"""


HF = TrainerForm(
    write=hf_files,
    names=tuple(f"{name}/{file}" for name in FOLDERS.values() for file in (METADATA, CARD)),
    folders=FOLDERS,
    own_media=True,
    several=True,
    suffixes=READ,
)
