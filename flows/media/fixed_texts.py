"""Finds the text that runs put around their captions, which no model is to learn: the run that uses
the model puts it there again."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from artifacts.edits import FixedText
from artifacts.files import OURS
from artifacts.json_shapes import BYTES, OptionalField, check, parse, text
from artifacts.regular_files import read_text
from artifacts.trainers import TRAINERS

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
