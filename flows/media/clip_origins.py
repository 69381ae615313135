"""Finds the captions of a run that a file of its data sets is about. Opens no media."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from artifacts.json_shapes import BYTES
from artifacts.regular_files import read_text
from artifacts.shards import clip_id
from flows.media.example import Row, contents_in, file_of, is_cut, item_of
from flows.media.fixed_texts import run_folder
from flows.options.formats import MADE, MOST_TRACKS, sounding

CUT = re.compile(r"-([0-9a-f]{12})-\d{5,}(?:-\d+)?")
"""End of a clip's name, and of a link's to a whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What a run recorded about a file of its data sets."""

    medium: str = ""
    """Identity of the content that the file was cut from; empty if unknown."""
    prompt: str = ""
    """Prompt of its caption; empty if unknown."""
    is_cut: bool = False
    """Whether the token limit ended that caption."""


class Origins:
    """What runs recorded about the files of their data sets."""

    def __init__(self) -> None:
        self.run_of = cache(run_folder)
        """Folder → the run that it is a data set of, or that it holds clips of; else itself."""
        self.contents = cache(lambda run: contents_in(run / "media.jsonl"))
        """Run → its media and their contents."""
        self._captions = cache(lambda run: _captions_in(run, self.contents(run)))

    def of(self, file: Path, data: Path, text: str) -> Origin:
        """Return what the run above the folder of a file, or of the `data` that name it, recorded
        about it and its text. A text that is none of the captions, as after a correction, has the
        first one's prompt."""
        names = (*CUT.findall(file.stem)[-1:], str(file))
        for folder in dict.fromkeys((file.parent, data)):
            captions = self._captions(self.run_of(folder)) if self.run_of(folder) != folder else {}
            for name in names:
                if found := captions.get(name):
                    same = [each for each in found if each[0]["caption"].split() == text.split()]
                    row, medium = (*same, *found)[0]
                    cut = bool(same) and is_cut(row)
                    return Origin(medium=medium, prompt=str(row.get("prompt") or ""), is_cut=cut)
        return Origin()


def is_of_set(folder: Path) -> bool:
    """Return whether a folder is a data set of a run, or holds its clips."""
    return run_folder(folder) != folder


def _captions_in(run: Path, contents: Mapping[str, str]) -> Mapping[str, list[tuple[Row, str]]]:
    """Return the captions of a run with the contents of their media, by the digits in the names of
    clips, and by the files of the media."""
    sounds = ("", *map(sounding, range(MOST_TRACKS + 1)))
    ways = {way + sound for pair in MADE.values() for way in pair for sound in sounds}
    found: defaultdict[str, list[tuple[Row, str]]] = defaultdict(list)
    try:
        for line in filter(None, read_text(run / "captions.jsonl", BYTES).split("\n")):
            row = json.loads(line)
            content = contents.get(item_of(row)[0], "")
            names = [clip_id(way, content, row["start"], row["end"]) for way in ways if content]
            row["caption"].split()  # a text, or the file is none of a run
            for name in (*names, str(file_of(row, run))):
                found[name].append((row, content))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}  # no captions of a run
    return found
