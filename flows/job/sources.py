"""Finds the media files that a command means: files, folders, globs and lists; opens no media
file."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

from artifacts.captions import Failure
from artifacts.errors import redacted
from artifacts.files import OURS
from artifacts.paths import RealPaths
from artifacts.regular import odd_thing
from artifacts.schema import MediaKind
from flows.job.source_lists import LIST_SUFFIXES, BadLine, lines_of

LONGEST_PATTERN = 4096
"""Most letters of a pattern, as many as a path may have bytes: to read one of 100,000 brackets
takes minutes."""
IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif",
    ".ppm", ".pgm", ".avif",
])  # fmt: skip
VIDEO_SUFFIXES = frozenset([
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg",
    ".wmv", ".flv", ".3gp", ".3g2", ".asf", ".mxf", ".vob", ".ogv", ".gif", ".y4m",
])  # fmt: skip
UNREADABLE = "Check that you may read it and that its disk is there"
NOT_A_FILE = "Name a file or a folder; what a FIFO or a device gives, write to a file first"


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFile:
    """One file to be captioned."""

    path: Path
    """Absolute path of the file."""
    media_path: str
    """Its name in the outputs: relative to the folder given, or the file's own name; POSIX."""
    source: str
    """The argument that brought it in."""
    kind: MediaKind
    """Kind by suffix: image or video."""
    prompt: str | None = None
    """Prompt that its line of a list gives; None: the command's own."""
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name → question, of a line that asks several."""
    name: str = ""
    """Name of the one of several prompts that it stands here for."""

    @property
    def identity(self) -> tuple[Path, str, str, str | None]:
        """Return what tells it from other files, whichever of several prompts it stands for."""
        prompt = None if self.name else self.prompt
        return (self.path, self.media_path, self.source, prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """A rule that says which files of a folder are taken."""

    recursive: bool
    extensions: tuple[str, ...]

    def takes(self, name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        if self.extensions:
            return suffix.lstrip(".") in {e.lower().lstrip(".") for e in self.extensions}
        return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES


def find_media(
    sources: Sequence[str],
    selection: Selection,
    limit: int | None = None,
    prompt_for: Callable[[str], str] | None = None,
) -> tuple[list[MediaFile], list[Failure]]:
    """Return the files that the sources name, in order and each once a prompt, and failures. The
    failures are what could not be found. `prompt_for` a kind is the prompt of files whose line has
    none."""
    found: list[MediaFile] = []
    failures: list[Failure] = []
    seen: set[tuple[str | None, ...]] = set()
    real = RealPaths()
    for source in sources:
        for result in _expand(source, source, selection):
            if isinstance(result, Failure):
                failures.append(result)
                continue
            prompt = result.prompt or (prompt_for(result.kind) if prompt_for else None)
            asked = [text for pair in result.prompts.items() for text in pair]
            identity = (real.of(result.path), result.media_path, prompt, *asked)
            if identity not in seen:
                seen.add(identity)
                found.append(result)
    return found[:limit], failures


def _expand(text: str, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    path = Path(os.path.expanduser(text))
    # os.path and not Path: a name too long, or in a folder one may not enter, is just not there.
    if text.startswith("@") and not os.path.exists(path):
        listed = Path(text[1:])
        if odd := odd_thing(listed):
            yield _not_a_file(source, str(listed), odd)
        else:
            yield from _listed(listed, source, selection)
    elif os.path.isfile(path) and path.suffix.lower() in LIST_SUFFIXES:
        yield from _listed(path, source, selection)
    else:
        yield from _named(text, source, selection)


def _named(text: str, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    """Yield what a name means that is no list's."""
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):
        yield from _folder(path, source, selection)
    elif os.path.exists(path):
        yield _taken(path, path.name, source)
    elif glob.has_magic(text) and "\0" not in text and len(text) < LONGEST_PATTERN:
        matches = sorted(glob.glob(os.path.expanduser(text), recursive=True))
        files = [Path(m) for m in matches if not os.path.isdir(m) and selection.takes(m)]
        if not files:
            yield _failure(source, text, "no-match", "no media file matches", "Check the pattern")
        for file in files:
            yield _taken(file, file.name, source)
    else:
        hint = "Check the name; a folder given earlier may have moved"
        yield _failure(source, text, "missing", "no such file or folder", hint)


def _taken(path: Path, name: str, source: str) -> MediaFile | Failure:
    """Return a thing that is there, if it is a file; nothing else is ever opened."""
    if odd := odd_thing(path):
        return _not_a_file(source, name, odd)
    kind: MediaKind = "image" if path.suffix.lower() in IMAGE_SUFFIXES else "video"
    return MediaFile(
        path=Path(os.path.abspath(path)),
        media_path=writable(name),
        source=writable(source),
        kind=kind,
    )


def _not_a_file(source: str, name: str, odd: str) -> Failure:
    return _failure(source, name, "not-a-file", f"this is {odd}, not a file", NOT_A_FILE)


def _folder(folder: Path, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    count = 0
    unread: list[OSError] = []
    for name in _walk(folder, selection.recursive, unread.append):
        if selection.takes(name):
            count += 1
            yield _taken(folder / name, name, source)
    for error in unread:
        message = f"the folder cannot be read ({error.strerror})"
        yield _failure(source, str(error.filename), "unreadable", message, UNREADABLE)
    if not count and not unread:
        hint = "Check the folder, or add --recursive" if not selection.recursive else "Check it"
        yield _failure(source, str(folder), "no-media", "no media file in this folder", hint)


def _walk(folder: Path, recursive: bool, unread: Callable[[OSError], None]) -> Iterator[str]:
    """Yield files in name order, named from the folder on. A folder that a link leads back to is
    entered once. `unread` is told of those that cannot be read."""
    entered = set()
    left = [""]
    while left:  # not os.walk, which calls itself for each folder in a folder
        inside = left.pop()
        place = os.path.join(folder, inside)
        try:
            found = os.stat(place)
            if (found.st_dev, found.st_ino) in entered:
                continue
            entered.add((found.st_dev, found.st_ino))
            with os.scandir(place) as entries:
                each = sorted(entries, key=attrgetter("name"))
        except OSError as error:
            unread(error)
            continue
        if inside and any(entry.name == OURS for entry in each):
            continue  # clips of a run, and links to what it captioned
        seen = [entry for entry in each if not entry.name.startswith(".")]
        yield from (os.path.join(inside, e.name) for e in seen if not _is_folder(e))
        folders = [os.path.join(inside, e.name) for e in seen if _is_folder(e)]
        left += reversed(folders) if recursive else []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _listed(path: Path, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    """Yield the files that the lines of a list name, relative to the list's folder."""
    for line in lines_of(path):
        if isinstance(line, BadLine):
            yield _failure(source, line.name, "list", line.message, line.hint)
            continue
        for result in _named(str(line.path), source, selection):
            if isinstance(result, MediaFile):
                result = replace(result, prompt=line.prompt, prompts=line.prompts)
            yield result


def writable(name: str) -> str:
    """Return a name that UTF-8 can hold. Bytes of a file's name that it cannot hold become
    replacement signs."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _failure(source: str, name: str, error: str, message: str, hint: str) -> Failure:
    return Failure(
        media_path=redacted(writable(name)),
        source=redacted(writable(source)),
        stage="sources",
        error=error,
        message=message,
        hint=hint,
    )
