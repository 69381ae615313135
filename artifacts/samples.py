"""Samples of a data set: a caption, its key, and the media bytes that belong to it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from artifacts.captions import Caption, said_of
from artifacts.keys import digest_of
from artifacts.stamps import Stamp

OWN_MEMBERS = ("txt", "json")
SLUG_LETTERS = 40
"""Number of letters of a medium's name that stand in a key."""
OUTPUT_VERSION = 1
"""Raised when the same samples are to be written otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """The media bytes of a sample."""

    path: Path
    suffix: str
    start: float = 0.0
    """Seconds of these media at which the chunk starts."""
    stamp: Stamp | None = None
    """Stamp that the file must have, or it holds something else by now; None: whatever it holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One chunk of a medium as it is written into a shard."""

    key: str
    row: Caption
    """The caption of the chunk."""
    content: str
    """Digest of the medium that it is of."""
    others: tuple[Caption, ...] = ()
    """What other prompts gave of the chunk."""

    @property
    def rows(self) -> tuple[Caption, ...]:
        """Return all its captions."""
        return (self.row, *self.others)

    def digest(self) -> str:
        rows = [said_of(row) for row in self.rows]
        return digest_of([OUTPUT_VERSION, self.key, *rows, self.content])


Samples = Iterator[tuple[Sample, Media | None]]


def sample_key(media_path: str, content: str, prompt: str, copy: int, chunk: int) -> str:
    """Return a key of letters that no tool takes for a folder or a suffix. It is the same in every
    run. `copy` tells apart what is alike in all else."""
    return _named(media_path, [media_path, content, prompt, copy], chunk)


def clip_key(media_path: str, content: str, start: float, end: float, chunk: int) -> str:
    """Return a key of the same letters for a stretch of a medium, whatever is said of it."""
    return _named(media_path, [content, start, end], chunk)


def _named(media_path: str, told: Sequence[object], chunk: int) -> str:
    slug = re.sub("[^A-Za-z0-9_-]+", "_", PurePosixPath(media_path).stem)[:SLUG_LETTERS].strip("_")
    return f"{slug or 'media'}-{digest_of(told)[:12]}-{chunk:05d}"


def media_suffix(name: str) -> str:
    """Return the suffix under which a reader finds the bytes of a file of this name."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    plain = re.fullmatch("[a-z0-9]{1,8}", suffix) and suffix not in OWN_MEMBERS
    return suffix if plain else "bin"
