"""One media file of a command, and the failure of a file that cannot be read. Searches no
folder."""

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
    """Absolute path of the file. For a remote file, the path of its local copy, which may not exist
    yet."""
    media_path: str
    """Its name in the outputs: relative to the folder given, or the file's own name; POSIX."""
    source: str
    """The command-line argument that named it."""
    kind: MediaKind
    """Kind by suffix: image or video."""
    far: FarFile | None = None
    """The remote file that the path is a copy of; None for a local file."""
    prompt: str | None = None
    """Prompt from its line of a list; None: the command's prompt."""
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name → prompt, if its line has several."""
    name: str = ""
    """Name of the prompt that this entry stands for, if there are several."""

    @property
    def place(self) -> str:
        """Return its path or address, without signatures."""
        return str(self.path) if self.far is None else self.far.place

    @property
    def identity(self) -> tuple[Path, str, str, str | None]:
        """Return what distinguishes it from other files, whichever of several prompts it stands
        for."""
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
    """Return the media kind of a file name."""
    return "image" if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES else "video"


def writable(name: str) -> str:
    """Return a name that UTF-8 can hold. Bytes that are no UTF-8 become replacement characters."""
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
