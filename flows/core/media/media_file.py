"""One media file of a command, and the failure of a file that cannot be read. Searches no
folder."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.errors import redacted
from artifacts.remote.addresses import RemoteFile, is_address, unsigned
from artifacts.schema import MediaKind
from artifacts.texts.captions import Failure

HEIC_SUFFIXES = frozenset([".heic", ".heif", ".hif"])
IMAGE_SUFFIXES = HEIC_SUFFIXES | frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".sgi", ".qoi",
])  # fmt: skip
VIDEO_SUFFIXES = frozenset([
    ".mp4", ".m4v", ".mov", ".qt", ".f4v", ".insv", ".mj2", ".3gp", ".3gpp", ".3g2", ".mkv",
    ".mk3d", ".webm", ".avi", ".divx", ".xvid", ".ts", ".mts", ".m2ts", ".m2t", ".trp", ".tp",
    ".mpg", ".mpeg", ".mpe", ".m2p", ".vob", ".m1v", ".m2v", ".mpv", ".wmv", ".asf", ".wtv",
    ".flv", ".rm", ".rmvb", ".mxf", ".gxf", ".dv", ".ogv", ".ogm", ".ivf", ".nut", ".y4m",
    ".gif", ".apng", ".mjpg", ".mjpeg", ".h264", ".264", ".h265", ".265", ".hevc", ".obu", ".av1",
])  # fmt: skip
MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
SOUND_SUFFIXES = (".mp3", ".wav", ".flac", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aiff")
UNREAD_SUFFIXES = frozenset([
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f", ".braw", ".crm", ".r3d", ".lrv",
    ".jxl", ".jxr", ".exr", ".hdr", ".dpx", ".dds", ".psd", ".psb", ".xcf", ".ico", ".svg", ".eps",
    *SOUND_SUFFIXES,
])  # fmt: skip
"""Suffixes of media that a folder is not read for, because no reader shows them or nobody captions
them; a note counts them."""


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
    remote: RemoteFile | None = None
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
        return str(self.path) if self.remote is None else self.remote.place

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

    def not_taken(self, names: Iterable[str]) -> str:
        """Return a note on media among these files that no folder is read for; empty if there are
        none, or if the user chose the suffixes."""
        suffixes = (os.path.splitext(name)[1].lower() for name in names if not self.extensions)
        counts = Counter(suffix for suffix in suffixes if suffix in UNREAD_SUFFIXES)
        if not counts:
            return ""
        text = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        convertible = counts.keys() - SOUND_SUFFIXES
        hint = "; convert them, for example to .png or .mp4" if convertible else " (sound alone)"
        return f"not taken: {text}{hint}"


def kind_of(name: str) -> MediaKind:
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
