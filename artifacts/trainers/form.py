"""The parts of a trainer's data set, common to all trainers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from artifacts.captions import Caption
from artifacts.files import json_text
from artifacts.samples import media_suffix
from artifacts.subtitles import one_line

IMAGES, VIDEOS = "images", "videos"
"""Folders, inside that of a data set, of media of each kind."""
FOLDERS = {"image": IMAGES, "video": VIDEOS}
"""Kind of media → its folder."""
PILLOW = frozenset(
    ["avif", "bmp", "jfif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"]
)
"""Suffixes of pictures that Pillow opens without a plugin: HEIC is not among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerEntry:
    """One image or video for a trainer, with its caption."""

    kind: str
    """`image` or `video`."""
    path: str
    """Absolute path, or relative to the folder of the data set where media must lie in it."""
    rows: tuple[Caption, ...]
    """Its caption, or the captions of the named prompts."""

    @property
    def row(self) -> Caption:
        """Return the caption for a trainer that takes one: that of the first prompt."""
        return self.rows[0]

    @property
    def caption(self) -> str:
        """Return that caption on one line: some trainers read the first line alone."""
        return one_line(self.row.caption)

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return PurePosixPath(self.path).name


Writer = Callable[[Sequence[TrainerEntry], Path], dict[str, str]]
"""A function of the entries and the folder of the data set: name of a file in it → its text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerForm:
    """The data set format of one trainer."""

    write: Writer
    names: tuple[str, ...]
    """All files that it may write, so that one that is no longer needed can be removed."""
    folders: Mapping[str, str]
    """Kind of media that the trainer takes → folder of those that must lie in the data set."""
    own_media: bool
    """Whether all media must lie in the data set; else only those that another path hides."""
    apart: Callable[[PurePosixPath], str] = str
    """What of a path tells media apart for the trainer, such as the stem of what it caches."""
    several: bool = False
    """Whether it takes the captions of all prompts."""
    suffixes: Mapping[str, frozenset[str]]
    """Kind of media → suffixes that the trainer reads, where that is not any."""

    def takes(self, kind: str, suffix: str) -> bool:
        """Return whether the trainer reads media of this kind and suffix."""
        return kind in self.folders and suffix in self.suffixes.get(kind, {suffix})

    def reads(self, kind: str, name: str) -> bool:
        """Return whether the trainer reads a file of this name, if it takes its kind at all."""
        return kind not in self.folders or self.takes(kind, media_suffix(name))


def of_kind(entries: Sequence[TrainerEntry], kind: str) -> list[TrainerEntry]:
    """Return the entries of one kind."""
    return [entry for entry in entries if entry.kind == kind]


def json_line(value: object) -> str:
    """Return one line of JSON."""
    return json_text(value) + "\n"


def toml_text(text: str) -> str:
    """Return a string as TOML has it, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
