"""Checks what trainers will see of the data sets that a run wrote: how many samples, which of them
have no text, and which have no file."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.edits import REJECTED, UNTOUCHED, Edit
from artifacts.json_shapes import BYTES
from artifacts.plurals import counted
from artifacts.regular_files import read_text
from artifacts.trainers import TRAINERS
from flows.media.media_files import kind_of

NAMED = 5
"""Samples that a finding names."""
Sample = tuple[str, str, Path]
"""Name, caption and file of a sample."""


def sets_in(out: Path, captions: Counter[str]) -> list[dict[str, Any]]:
    """Return a finding for each data set in a folder. `captions` are the numbers of captions that
    were not rejected, by the kind of their media."""
    found = []
    for form, read in READERS.items():
        if not (out / form).is_dir():
            continue
        try:
            samples = list(read(out / form))
            empty = [name for name, caption, _ in samples if not caption.strip()]
            missing = [name for name, _, file in samples if not file.is_file()]
            problem = ""
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            samples, empty, missing, problem = [], [], [], f"cannot be read: {error}"
        found.append(
            {
                "format": form,
                "folder": str(out / form),
                "samples": len(samples),
                "captions": captions.total(),
                "left_out": [
                    f"{counted(count, kind)}: {form} reads no {kind}s"
                    for kind, count in captions.items()
                    if kind not in TRAINERS[form].folders
                ],
                "empty": [len(empty), empty[:NAMED]],
                "missing": [len(missing), missing[:NAMED]],
                "problem": problem,
            }
        )
    return found


def kept_kinds(rows: Mapping[str, Mapping[str, Any]], edits: Mapping[str, Edit]) -> Counter[str]:
    """Return the numbers of captions that were not rejected, by the kind of their media."""
    kept = (row for key, row in rows.items() if edits.get(key, UNTOUCHED).review != REJECTED)
    return Counter(kind_of(row["media_path"]) for row in kept)


def _kohya(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.glob("*.json")):
        for name, entry in json.loads(read_text(path, BYTES)).items():
            yield Path(name).name, entry["caption"], Path(name)


def _musubi(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.glob("[!.]*.jsonl")):
        for row in _lines(path):
            name = row.get("image_path") or row["video_path"]
            yield Path(name).name, row["caption"], Path(name)


def _diffusion_pipe(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.glob("*/captions.json")):
        for name, captions in json.loads(read_text(path, BYTES)).items():
            yield name, captions[0] if captions else "", path.parent / name


def _ltx(folder: Path) -> Iterator[Sample]:
    for row in _lines(folder / "dataset.jsonl"):
        yield row["media_path"], row["caption"], folder / row["media_path"]


def _hf(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.glob("*/metadata.jsonl")):
        for row in _lines(path):
            yield row["file_name"], row["text"], path.parent / row["file_name"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


READERS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "kohya": _kohya,
    "musubi": _musubi,
    "diffusion-pipe": _diffusion_pipe,
    "ltx": _ltx,
    "hf": _hf,
}
