"""One caption as a training example, and the content that it is about.

No model is to learn the text that runs put around their captions: the run that uses the model puts
it there again.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.edits import FixedText
from artifacts.files import OURS
from artifacts.json_shapes import BYTES, OptionalField, check, parse, text
from artifacts.regular_files import read_text
from artifacts.trainers import TRAINERS
from flows.media.sources import LIST_SUFFIXES

Row = Mapping[str, Any]
PATHS = ("path", "file_name", "image", "video", "image_path", "video_path")
"""Fields that name a file, relative to the data's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One caption, with its medium and chunk."""

    path: Path
    """File of the medium."""
    caption: str
    start: float | None = None
    """Start of its chunk in seconds; None: the medium is one chunk."""
    end: float | None = None
    prompt: str = ""
    """Prompt of the caption; empty: the default one."""
    features: str = ""
    """Key of the features that it was made from; empty if unknown."""
    content: str = ""
    """Identity of the content that was captioned; empty if unknown."""
    medium: str = ""
    """Identity of the medium that its file was cut from, as far as the data state it."""
    is_cut: bool = False
    """Whether the token limit ended it, and no person wrote or accepted it."""
    line: int = 0
    """Line in the data; 0 if the caption is a file of its own."""

    @property
    def item(self) -> tuple[Any, ...]:
        """Return the identity of the item that has one caption."""
        return self.path, self.start, self.end, self.prompt

    @property
    def place(self) -> str:
        """Return where its caption stands, in the data."""
        return f"line {self.line}" if self.line else self.path.name


def file_of(row: Row, folder: Path) -> Path | None:
    """Return the file of a row: by source and path below it, as runs write it, or relative to the
    `folder` of the data."""
    if isinstance(row.get("media_path"), str):
        source = Path(str(row.get("source") or folder)).expanduser()
        if source.is_file() and source.suffix.lower() not in LIST_SUFFIXES:
            return absolute(source)
        # For a pattern, a list or an address, the name at least distinguishes the files.
        next_to_source, in_source = (
            folder / str(row["media_path"]) for folder in (source.parent, source)
        )
        return absolute(
            next_to_source if next_to_source.is_file() and not in_source.exists() else in_source
        )
    named = next((row[name] for name in PATHS if isinstance(row.get(name), str)), None)
    return None if named is None else absolute(folder / named)


def absolute(path: Path) -> Path:
    """Return a path as the search for media names it, without `..`."""
    return Path(os.path.abspath(path))


def is_cut(row: Row) -> bool:
    """Return whether the token limit ended a caption, and no person wrote or accepted it."""
    return row.get("ended") == "length" and not (row.get("review") or row.get("original"))


def item_of(row: Row) -> tuple[str, str]:
    """Return the medium of a row, by source and path, and its prompt."""
    return (
        f"{row.get('source')}\n{row.get('media_path')}",
        f"{row.get('name')}\n{row.get('prompt')}",
    )


def contents_in(path: Path) -> Mapping[str, str]:
    """Return the name of each medium of a run → the identity of the content that it read."""
    try:
        rows = [json.loads(line) for line in read_text(path, BYTES).split("\n") if line]
        # Data sets do not state the source.
        by_path = {f"{None}\n{r['media_path']}": str(r.get("content", "")) for r in rows}
        return by_path | {item_of(row)[0]: str(row.get("content", "")) for row in rows}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}  # no run wrote the data


RECORD = "run.json"
SHAPE = {"prefix": text, "suffix": text, "trigger": OptionalField(text)}
FEWEST, SHARE, TAIL = 20, 0.9, 15
"""Captions of a list in which the same words are no accident: their number, the share of them that
has the words, and the number of characters of an end."""


def run_folder(folder: Path) -> Path:
    """Return the folder of the run that wrote captions into a folder: the one above it if the
    folder is a data set of a run, or holds its clips."""
    sets = [
        each
        for each in (folder, folder.parent)
        if each.name in TRAINERS or os.path.lexists(each / OURS)
    ]
    return sets[0].parent if sets and not os.path.lexists(folder / RECORD) else folder


def fixed_text_of(folder: Path) -> FixedText:
    """Return the text that a run put around the captions in a folder, as its record states."""
    try:
        words = parse(read_text(run_folder(folder) / RECORD, BYTES))["plan"]["words"]
        check(words, SHAPE)
        return FixedText.of(words)
    except (OSError, ValueError, LookupError, TypeError):
        return FixedText()  # no record, or one without such texts


def alike_note(folder: Path, captions: Sequence[str]) -> str:
    """Return a note if nearly all captions begin or end alike, and no run in their folder states
    what it put there; else an empty text."""
    if len(captions) < FEWEST or os.path.lexists(run_folder(folder) / RECORD):
        return ""
    heads = Counter(each[: each.index(",") + 1] for each in captions if "," in each)
    tails = Counter(each[-TAIL:] for each in captions if len(each) > TAIL)
    for does, found in (("begin", heads), ("end", tails)):
        for words, count in found.most_common(1):
            if count > SHARE * len(captions):
                return (
                    f"{count:,} of {len(captions):,} captions {does} with {words!r}, which is "
                    "trained, too: leave it out of them if a run adds it (--trigger, --prefix, "
                    "--suffix)"
                )
    return ""
