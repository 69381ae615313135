"""Which media files a command means: files, folders, globs and lists; opens no media file."""

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.captions import Failure
from artifacts.errors import redacted
from artifacts.paths import RealPaths
from artifacts.schema import MediaKind

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".ppm",
        ".pgm",
        ".avif",
    ]
)
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
        ".3g2",
        ".asf",
        ".mxf",
        ".vob",
        ".ogv",
        ".gif",
        ".y4m",
    ]
)
LIST_SUFFIXES = frozenset((".txt", ".jsonl"))


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFile:
    """One file to be captioned."""

    path: Path
    """Where it lies, absolute."""
    media_path: str
    """Its name in the outputs: relative to the folder given, or the file's own name; POSIX."""
    source: str
    """The argument that brought it in."""
    kind: MediaKind
    """By suffix: image or video."""
    prompt: str | None = None
    """What its line of a list asks about it; None: what the command asks about all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which files of a folder are taken."""

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
    """The files that the sources name, in order and each once a prompt, and what could not be
    found. `prompt_for` a kind is the prompt of files whose line has none."""
    found: list[MediaFile] = []
    failures: list[Failure] = []
    seen: set[tuple[str, str, str | None]] = set()
    real = RealPaths()
    for source in sources:
        for result in _expand(source, source, selection):
            if isinstance(result, Failure):
                failures.append(result)
                continue
            prompt = result.prompt or (prompt_for(result.kind) if prompt_for else None)
            identity = (real.of(result.path), result.media_path, prompt)
            if identity not in seen:
                seen.add(identity)
                found.append(result)
    return found[:limit], failures


def _expand(text: str, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    path = Path(os.path.expanduser(text))
    # os.path and not Path: a name too long, or in a folder one may not enter, is just not there.
    if text.startswith("@") and not os.path.exists(path):
        yield from _listed(Path(text[1:]), source, selection)
    elif os.path.isdir(path):
        yield from _folder(path, source, selection)
    elif os.path.isfile(path) and path.suffix.lower() in LIST_SUFFIXES:
        yield from _listed(path, source, selection)
    elif os.path.exists(path):
        yield _file(path, path.name, source)
    elif glob.has_magic(text) and "\0" not in text:
        matches = sorted(glob.glob(os.path.expanduser(text), recursive=True))
        files = [Path(m) for m in matches if os.path.isfile(m) and selection.takes(m)]
        if not files:
            yield _failure(source, text, "no-match", "no media file matches", "Check the pattern")
        for file in files:
            yield _file(file, file.name, source)
    else:
        hint = "Check the name; a folder given earlier may have moved"
        yield _failure(source, text, "missing", "no such file or folder", hint)


def _folder(folder: Path, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    count = 0
    for name in _walk(folder, selection.recursive):
        if selection.takes(name):
            count += 1
            yield _file(folder / name, name, source)
    if not count:
        hint = "Check the folder, or add --recursive" if not selection.recursive else "Check it"
        yield _failure(source, str(folder), "no-media", "no media file in this folder", hint)


def _walk(folder: Path, recursive: bool) -> Iterator[str]:
    """Files in name order, named from the folder on; a folder that a link leads back to is entered
    once."""
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        inside = place.removeprefix(str(folder)).lstrip("/")
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(inside, name)


def _listed(path: Path, source: str, selection: Selection) -> Iterator[MediaFile | Failure]:
    """One source a line; in a `.jsonl` list the `path` of each object, and the `prompt` if it has
    one. Relative to the list's folder."""
    try:
        # Not splitlines, which also cuts where a name or a prompt has an odd line separator.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = "A list holds one path a line"
        yield _failure(source, str(path), "list", f"the list cannot be read: {reason}", hint)
        return
    for number, line in enumerate(lines, 1):
        entry, prompt = line.strip(), None
        if not entry or entry.startswith("#"):
            continue
        if path.suffix.lower() == ".jsonl":
            try:
                entry, prompt = _entry(entry)
            except ValueError as error:
                message = f"line {number} of the list {error}"
                hint = 'Write {"path": "clip.mp4"}, or {"path": "clip.mp4", "prompt": "What …?"}'
                yield _failure(source, str(path), "list", message, hint)
                continue
        if Path(entry).suffix.lower() in LIST_SUFFIXES:
            message = f"line {number} names another list"
            yield _failure(source, entry, "list", message, "Name media files and folders only")
            continue
        for result in _expand(str(path.parent / entry), source, selection):
            yield replace(result, prompt=prompt) if isinstance(result, MediaFile) else result


def _entry(line: str) -> tuple[str, str | None]:
    """Path and prompt of a line of JSON. Raises ValueError that says what is wrong with it."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not path:
        raise ValueError("is no JSON object with a path")
    prompt = value.get("prompt")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise ValueError("has a prompt that is empty or no text")
    try:
        os.fsencode(path), (prompt or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half a character, which no text can") from error
    return path, prompt


def _file(path: Path, name: str, source: str) -> MediaFile:
    kind: MediaKind = "image" if path.suffix.lower() in IMAGE_SUFFIXES else "video"
    return MediaFile(
        path=Path(os.path.abspath(path)),
        media_path=writable(name),
        source=writable(source),
        kind=kind,
    )


def writable(name: str) -> str:
    """A name that UTF-8 can hold: bytes of a file's name that are none become replacement signs."""
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
