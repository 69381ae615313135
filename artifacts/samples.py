"""Samples of a data set: a caption, its key, and the media bytes that belong to it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from artifacts.captions import Caption, fields_of_row
from artifacts.keys import digest_of
from artifacts.stamps import Stamp

OWN_MEMBERS = ("txt", "json")
SLUG_LETTERS = 40
"""Number of characters of a medium's name in a key."""
OUTPUT_VERSION = 3
"""Raised when samples are written differently for the same captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """The media bytes of a sample."""

    path: Path
    suffix: str
    start: float = 0.0
    """Seconds of the media file at which the chunk starts."""
    stamp: Stamp | None = None
    """Stamp that the file must still have; None: any."""
    clip: str = ""
    """Key of the clip that these are; empty: a file of its own."""
    at: int = 0
    """Place of the bytes in the file."""
    size: int | None = None
    """Number of bytes; None: all of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One chunk of a medium, as written into a shard."""

    key: str
    row: Caption
    """The caption of the chunk."""
    content: str
    """Content digest of its medium."""
    made: str = ""
    """How its media are made: mode and version."""
    chunk: int = 0
    """Index of the chunk in its medium."""
    others: tuple[Caption, ...] = ()
    """Captions of other prompts for the chunk."""

    @property
    def rows(self) -> tuple[Caption, ...]:
        """Return all captions of the chunk."""
        return (self.row, *self.others)

    def digest(self) -> str:
        rows = [fields_of_row(row) for row in self.rows]
        return digest_of([OUTPUT_VERSION, self.key, *rows, self.content, self.made])

    @property
    def clip(self) -> str:
        """Return the key of its clip: of these characters, and the same for each prompt."""
        row = self.row
        digits = clip_id(self.made, self.content, row.start, row.end)
        return _named(row.media_path, digits, self.chunk)


Samples = Iterator[tuple[Sample, Media | None]]


def clip_id(made: str, content: str, start: float, end: float) -> str:
    """Return the digits of a clip's key: they say what it shows, and how it is made."""
    return _digits([made, content, start, end])


def sample_key(media_path: str, content: str, prompt: str, copy: int, chunk: int) -> str:
    """Return a key of characters that no tool treats as a folder or suffix. It is the same in every
    run. `copy` numbers samples that are equal otherwise."""
    return _named(media_path, _digits([media_path, content, prompt, copy]), chunk)


def _digits(identity: Sequence[object]) -> str:
    return digest_of(identity)[:12]


def _named(media_path: str, digits: str, chunk: int) -> str:
    slug = re.sub("[^A-Za-z0-9_-]+", "_", PurePosixPath(media_path).stem)[:SLUG_LETTERS].strip("_")
    return f"{slug or 'media'}-{digits}-{chunk:05d}"


def media_suffix(name: str) -> str:
    """Return the suffix under which readers find the bytes of a file."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    plain = re.fullmatch("[a-z0-9]{1,8}", suffix) and suffix not in OWN_MEMBERS
    return suffix if plain else "bin"
