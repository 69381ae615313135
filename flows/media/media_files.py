"""One media file of a command, and the error text of a file that cannot be read. Searches no
folder.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.captions import Failure
from artifacts.errors import redacted
from artifacts.remote.addresses import FarFile, is_address, unsigned
from artifacts.schema import MediaKind

IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif",
    ".ppm", ".pgm", ".avif",
])  # fmt: skip
VIDEO_SUFFIXES = frozenset([
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg",
    ".wmv", ".flv", ".3gp", ".3g2", ".asf", ".mxf", ".vob", ".ogv", ".gif", ".y4m",
])  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFile:
    """One file to be captioned."""

    path: Path
    """Absolute path of the file; of one far away, that of a copy, which need not be there."""
    media_path: str
    """Its name in the outputs: relative to the folder given, or the file's own name; POSIX."""
    source: str
    """The argument that brought it in."""
    kind: MediaKind
    """Kind by suffix: image or video."""
    far: FarFile | None = None
    """What the path is a copy of; None for a file of this machine."""
    prompt: str | None = None
    """Prompt that its line of a list gives; None: the command's own."""
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name → question, of a line that asks several."""
    name: str = ""
    """Name of the one of several prompts that it stands here for."""

    @property
    def place(self) -> str:
        """Return where it lies, as it may be shown and kept: a path, or an address."""
        return str(self.path) if self.far is None else self.far.place

    @property
    def identity(self) -> tuple[Path, str, str, str | None]:
        """Return what tells it from other files, whichever of several prompts it stands for."""
        prompt = None if self.name else self.prompt
        return (self.path, self.media_path, self.source, prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """A rule that selects files of a folder."""

    recursive: bool
    extensions: tuple[str, ...]

    def takes(self, name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        if self.extensions:
            return suffix.lstrip(".") in {e.lower().lstrip(".") for e in self.extensions}
        return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES


def kind_of(name: str) -> MediaKind:
    """Return what a file of this name is read as."""
    return "image" if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES else "video"


def writable(name: str) -> str:
    """Return a name that UTF-8 can hold. Bytes of a file's name that it cannot hold become
    replacement signs."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def source_failure(source: str, name: str, error: str, message: str, hint: str) -> Failure:
    return Failure(
        media_path=redacted(writable(name)),
        source=redacted(writable(unsigned(source) if is_address(source) else source)),
        stage="sources",
        error=error,
        message=message,
        hint=hint,
    )
