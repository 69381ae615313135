"""The files and folders that the page may name: those below the roots given at start."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
import unicodedata
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from artifacts.disk.faults import disk_faults, read_fault
from artifacts.disk.files import HALF, are_equal, is_hidden
from artifacts.disk.json_shapes import Json
from artifacts.disk.locks import try_lock
from artifacts.disk.names import file_name, numbered
from artifacts.disk.paths import rename_noreplace
from artifacts.disk.regular_files import refuse_links
from artifacts.errors import EnvironmentFault, UsageError
from flows.core.media.media_file import MEDIA_SUFFIXES, writable
from flows.core.media.sources import is_folder

SHOWN_FILES = 100_000
"""Largest number of files of a folder that the page lists."""
SHOWN_FOLDERS = 10_000
COUNT_SECONDS = 2.0
"""Seconds after which the count of a folder ends."""
LONGEST_NAME = 200
"""Largest number of bytes in an uploaded file's name."""
LARGEST_FILE = 4 << 30
LARGEST_UPLOADS = 64 << 30
"""Largest size of all uploaded files of an output folder, in bytes."""
WRITTEN_BYTES = 1 << 20
RESERVE = 1 << 30
"""Bytes of the disk that uploads leave free."""


class Refused(UsageError):
    """A value that the page may not send."""


class NoSuchFolder(UsageError):
    """A folder that is not there."""


class Roots:
    """Folders below which the page may name paths. Links are followed before they are checked."""

    def __init__(self, folders: Iterable[str | Path], unoffered: Iterable[str | Path] = ()) -> None:
        """Take the roots; relative paths are below the first. The page names, but does not offer,
        `unoffered`: the store."""
        self.offered = tuple(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
        others = (Path(os.path.realpath(folder)) for folder in unoffered)
        self.folders = tuple(dict.fromkeys([*self.offered, *others]))

    def inside(self, given: str) -> Path:
        """Return a path with its links resolved, which can be looked at. Raises Refused unless it
        is below a root, and no hidden file or folder."""
        refused = Refused(f"invalid path {given[:80]!r}", hint="Give a path below a root")
        if given.startswith("~"):
            raise refused
        try:
            path = Path(os.path.realpath(os.path.join(self.folders[0], given)))
            if self.holds(path):
                path.exists()
        except (OSError, ValueError) as error:  # a name that is too long, a NUL, a lone surrogate
            raise refused from error
        if not self.holds(path):
            raise Refused(
                f"{writable(str(path))} is outside the folders of this studio",
                hint="Start `penstock studio` with --root and that folder",
            )
        return path

    def holds(self, path: Path) -> bool:
        """Return whether a resolved path is below a root, with no hidden part."""
        return any(
            path.is_relative_to(root)
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
            for root in self.folders
        )

    def source(self, given: str, *, recursive: bool) -> Path:
        """Return a folder or media file to be read. Raises Refused for anything else, such as a
        list of other files, and for a folder with links that lead out of the roots."""
        path = self.inside(given)
        if path.is_dir():
            for entry in _entries(path, recursive=recursive):
                if entry.is_symlink() and not self.holds(Path(os.path.realpath(entry.path))):
                    raise Refused(
                        f"{writable(entry.path)} is a link out of the folders of this studio",
                        hint="Start `penstock studio` with --root and the folder it leads to",
                    )
        elif path.suffix.lower() not in MEDIA_SUFFIXES or not path.is_file():
            raise Refused(
                f"{writable(str(path))} is no folder, image or video", hint="Choose one in the page"
            )
        return path

    def listing(self, given: str) -> dict[str, Json]:
        """Return the folders and media files in a folder, without hidden ones. Raises Refused,
        EnvironmentFault."""
        path = self.inside(given)
        folders, media, count = list[str](), list[str](), 0
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            if path.is_dir():
                raise read_fault(error, path) from error
            where = f"there is no folder {writable(str(path))}"
            raise NoSuchFolder(where, hint="Choose another one: it was moved or deleted") from error
        for entry in entries:
            if is_hidden(entry.name) or not is_shown(entry.name) or not self._leads_inside(entry):
                continue
            if is_folder(entry):
                if len(folders) < SHOWN_FOLDERS:
                    folders.append(entry.name)
            elif _suffix(entry.name) in MEDIA_SUFFIXES:
                count += 1
                if len(media) < SHOWN_FILES:
                    media.append(entry.name)
        above = path.parent
        return {
            "path": str(path),
            "up": str(above) if self.holds(above) else None,
            "folders": folders,
            "media": media,
            "count": count,
        }

    def medium(self, given: str) -> Path:
        """Return an image or a video that the page may show. Raises Refused."""
        path = self.inside(given)
        if path.suffix.lower() not in MEDIA_SUFFIXES or not path.is_file():
            raise Refused(
                f"{writable(str(path))} is no image or video", hint="Choose one in the page"
            )
        return path

    def media_below(self, given: str) -> dict[str, Json]:
        """Return the number of media files in a folder and in those below it, and whether there may
        be more: counting ends after COUNT_SECONDS. What is not readable counts as empty. Raises
        Refused."""
        end, count = time.monotonic() + COUNT_SECONDS, 0
        waiting, seen = [str(self.inside(given))], set[str]()
        while waiting:
            folder = os.path.realpath(waiting.pop())
            if folder in seen:
                continue
            seen.add(folder)
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if time.monotonic() > end:
                        return {"count": count, "more": True}
                    if is_hidden(entry.name) or not self._leads_inside(entry):
                        continue
                    if is_folder(entry):
                        waiting.append(entry.path)
                    else:
                        count += _suffix(entry.name) in MEDIA_SUFFIXES
        return {"count": count, "more": False}

    def _leads_inside(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry of a folder that may be named is not a link out of the roots."""
        return not entry.is_symlink() or self.holds(Path(os.path.realpath(entry.path)))


def is_shown(name: str | Path) -> bool:
    """Return whether a name can be sent as JSON, and come back."""
    return writable(str(name)) == str(name)


def _entries(folder: Path, *, recursive: bool) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder, also behind links to folders, each folder once."""
    waiting, seen = [str(folder)], set[str]()
    try:
        while waiting:
            if (real := os.path.realpath(waiting.pop())) in seen:
                continue
            seen.add(real)
            with os.scandir(real) as entries:
                for entry in entries:
                    yield entry
                    if recursive and os.path.isdir(entry.path):
                        waiting.append(entry.path)
    except OSError as error:
        raise read_fault(error, folder) from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


async def upload(pieces: AsyncIterator[bytes], name: str, folder: Path) -> Path:
    """Write an uploaded media file into a folder, under its own name or one like it. Raises
    Refused, EnvironmentFault."""
    _check_name(name)
    half = await asyncio.to_thread(_HalfFile, name, folder)
    try:
        waiting = bytearray()
        async for piece in pieces:
            waiting += piece
            if len(waiting) >= WRITTEN_BYTES:
                await asyncio.to_thread(half.add, bytes(waiting))
                waiting.clear()
        return await asyncio.to_thread(half.end, bytes(waiting))
    finally:
        half.remove()


class _HalfFile:
    """An uploaded file under a temporary name. Its methods raise Refused and EnvironmentFault."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder, self._size = name, folder, 0
        with disk_faults(folder):
            refuse_links(folder)
            folder.mkdir(parents=True, exist_ok=True)
            self._before = sum(e.stat().st_size for e in os.scandir(folder) if e.is_file())
            handle, self._path = tempfile.mkstemp(dir=folder, prefix=HALF)
        try_lock(handle)  # so that no run sweeps it
        self._file = os.fdopen(handle, "wb")

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > LARGEST_FILE or self._before + self._size > LARGEST_UPLOADS:
            raise Refused(f"{self._name} is too large", hint="Copy it into a folder instead")
        if shutil.disk_usage(self._folder).free < RESERVE:
            raise EnvironmentFault("the disk is full", hint="Free some space")
        with disk_faults(self._folder):
            self._file.write(piece)

    def end(self, piece: bytes) -> Path:
        """Give the complete file its name, durably."""
        self.add(piece)
        if not self._size:
            raise Refused(f"{self._name} is empty", hint="Drop an image or a video")
        with disk_faults(self._folder):
            self._file.flush()
            os.fsync(self._file.fileno())
            return _placed(self._path, self._folder, self._name)

    def remove(self) -> None:
        self._file.close()
        Path(self._path).unlink(missing_ok=True)


def _check_name(name: str) -> None:
    if not name:
        raise Refused("the file has no name", hint="Give it in the address: upload?name=a.png")
    odd = any(unicodedata.category(letter)[0] == "C" for letter in name)
    if odd or name.startswith(".") or {"/", "\\"} & {*name} or len(name.encode()) > LONGEST_NAME:
        raise Refused(f"{name[:80]!r} is no name for a file", hint="Rename it")
    if Path(name).suffix.lower() not in MEDIA_SUFFIXES:
        raise Refused(f"{name} is neither image nor video by its name", hint="Drop media files")


def _placed(half: str, folder: Path, name: str) -> Path:
    """Give an uploaded file its name. A file of the same name stays; one of the same content is the
    same file."""
    places = (folder / file_name(n, folder) for n in numbered(*os.path.splitext(name)))
    return next(p for p in places if rename_noreplace(Path(half), p) or are_equal(Path(half), p))
