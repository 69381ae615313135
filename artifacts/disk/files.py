"""Writes files atomically: a reader sees the old file or the new one, never a partial one.

The module refuses to write into folders that other programs or people write into. It can give a
file a second name in another folder, so that no large file is stored twice.
"""

import contextlib
import errno
import fcntl
import filecmp
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from artifacts.disk.faults import disk_faults, fault_of
from artifacts.disk.json_shapes import Json
from artifacts.disk.locks import lock, try_lock
from artifacts.disk.regular_files import NotAFile, irreplaceable_kind, refuse_links
from artifacts.errors import EnvironmentFault, UsageError

HALF = ".penstock-"
"""Prefix of the names of unfinished files."""
METRICS = ".prom"
"""Suffix of files of `--metrics-file`. They may lie in any folder of outputs."""
OURS = f"{HALF}made"
"""A file that marks a folder of generated media. Sources above the folder skip it."""
SERVER_FOLDERS = frozenset(
    (
        "@eaDir", ".@__thumb", ".thumbnails", "@SynoResource", "@tmp", "__MACOSX",
        "#recycle", "@Recycle", "$RECYCLE.BIN", "$Recycle.Bin", "lost+found",
        "System Volume Information", "#snapshot", "@Recently-Snapshot", "@Snapshots",
    )
)  # fmt: skip
"""Folders in which servers and systems keep thumbnails, deleted files and earlier versions."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder in a source is skipped unless it is named itself."""
    return name.startswith(".") or name in SERVER_FOLDERS


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing. It replaces `path` when the block succeeds. Raises
    EnvironmentFault."""
    try:
        refuse_links(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, half = tempfile.mkstemp(dir=path.parent, prefix=HALF)
        try:
            with os.fdopen(handle, "wb") as file:
                try_lock(handle)  # so that no other process sweeps it
                with contextlib.suppress(OSError):  # a disk without permissions
                    os.fchmod(file.fileno(), 0o666 & ~UMASK)
                yield file
                file.flush()
                os.fsync(file.fileno())
            replace_file(half, path)
        except BaseException:
            # It is gone if Ctrl-C came during the replacement. An error here would hide the
            # interrupt, and callers that ignore a full disk would go on.
            with contextlib.suppress(OSError):
                os.unlink(half)
            raise
    except IsADirectoryError as error:
        raise EnvironmentFault(
            f"{path} cannot be written: it is a folder", hint="Move that folder away"
        ) from error
    except OSError as error:
        raise fault_of(error, path.parent) from error


def replace_file(half: str | Path, path: Path) -> None:
    """Give a finished file its final name: each file of a user's folder gets it here. Raises
    OSError; NotAFile if a device, a FIFO, a socket or an open stream is there."""
    if kind := irreplaceable_kind(path):
        raise NotAFile(errno.EINVAL, f"it is {kind}, and is not replaced", os.fspath(path))
    os.replace(half, path)


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write a UTF-8 file. Raises EnvironmentFault."""
    with whole_file(path) as file:
        file.writelines(piece.encode("utf-8", errors="replace") for piece in pieces)


def write_json(path: Path, value: Json) -> None:
    """Write an indented JSON file. Raises EnvironmentFault."""
    write_text(path, [json_text(value, indent=1) + "\n"])


def json_text(value: Json, indent: int | None = None) -> str:
    """Return JSON that people can read. One that holds a path that is no UTF-8 is ASCII, in which
    half surrogates keep the path's bytes."""
    text = encoded(value, indent=indent)
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()
        return text
    return encoded(value, indent=indent, ensure_ascii=True)


def append_lines(file: int, rows: Iterable[Json]) -> None:
    """Append JSON lines durably, after a line that a crash tore. Raises OSError."""
    end = os.lseek(file, 0, os.SEEK_END)
    torn = b"\n" if end and os.pread(file, 1, end - 1) != b"\n" else b""
    written = torn + b"".join(json_text(row).encode() + b"\n" for row in rows)
    while written:
        written = written[os.write(file, written) :]
    os.fsync(file)


@cache
def _encoder(indent: int | None, ensure_ascii: bool) -> json.JSONEncoder:
    """Return an encoder, which `json.dumps` would make anew for each row."""
    return json.JSONEncoder(indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def encoded(value: Json, *, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Return JSON, with null in place of NaN and infinity, which JSON cannot hold."""
    encoder = _encoder(indent, ensure_ascii)
    try:
        return encoder.encode(value)
    except ValueError:
        return encoder.encode(finite(value))


def finite(value: Json) -> Json:
    """Return the value with None in place of each NaN and infinity in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return [*map(finite, value)] if isinstance(value, list | tuple) else value


def read_kept(path: Path, form: int) -> dict[str, Any] | None:
    """Return the content of a JSON file of this `format`, without that field. Return None if it is
    missing, or of another format."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value if value.pop("format") == form else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def sweep(folder: Path) -> None:
    """Delete unfinished files of killed processes, whose locks are free. No link below a guarded
    folder is followed."""
    for path in folder.glob(f"{HALF}*"):
        if path.is_file() and path.name != OURS:
            with contextlib.suppress(OSError, EnvironmentFault):
                refuse_links(path)
                with path.open("r+b") as file:
                    if lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                        path.unlink()


FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()
"""The user's umask. It is read once, because reading it sets it for a moment, and other threads'
files would get wrong permissions."""


@contextlib.contextmanager
def own_folder(place: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder, and delete it after the block; also those of ended processes. A lock says
    that a process lives: process ids mean nothing between containers. Raises OSError."""
    delete_unlocked(place, prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        # Another process may take it for one of an ended process before it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock_file = os.open(folder, FOLDER_FLAGS)
            if try_lock(lock_file) and folder.exists():
                break
            os.close(lock_file)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock_file)


def delete_unlocked(place: Path, prefix: str) -> None:
    """Delete the folders of this prefix whose process has ended, so that nobody has their lock."""
    for left in place.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another user's
            lock_file = os.open(left, FOLDER_FLAGS)
            try:
                if lock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock_file)


def refuse_foreign(folder: Path, own: Collection[str], records: Sequence[str]) -> None:
    """Raise UsageError for a folder with foreign content. A folder is our own if one of the files
    `records` is in it, or if it has no entries besides `own` and metrics."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(
            f"{folder} is not a folder, or a file is in the place of a parent folder",
            hint="Give a new folder",
        ) from error
    except OSError:  # the run will report it
        return
    unfinished_or_metrics = {n for n in names if n.startswith(HALF) or n.endswith(METRICS)}
    others = [name for name in names if name not in own and name not in unfinished_or_metrics]
    if others and not any((folder / record).is_file() for record in records):
        shown = min(others, key=lambda name: (name.startswith("."), name))
        raise UsageError(f"{folder} holds other files ({shown})", hint="Give a new folder")


def link(source: Path, target: Path, *, symbolic: bool = True) -> bool:
    """Make `target` the same file as `source`, replacing what was there: a hard link, else a
    `symbolic` one, else a copy. Return whether it is a copy. Raises EnvironmentFault."""
    # Resolve links: a link to a link breaks when the user moves the first one.
    real = os.path.realpath(source)
    half = target.with_name(f"{HALF}{target.name}")
    with disk_faults(target.parent):
        refuse_links(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            half.unlink()  # from a killed run
        copied = _make(real, half, symbolic=symbolic)
        replace_file(half, target)
    return copied


def _make(real: str, half: Path, *, symbolic: bool) -> bool:
    # Another disk, another owner or a file system without links fail with different errors.
    with contextlib.suppress(OSError):
        os.link(real, half)
        return False
    if symbolic:
        with contextlib.suppress(OSError):
            os.symlink(real, half)
            return False
    shutil.copyfile(real, half)
    with contextlib.suppress(OSError):  # of a disk without permissions; it sets the time before
        shutil.copystat(real, half)
    return True


def is_linked(source: Path, target: Path) -> bool:
    """Return whether `target` is the file at `source`, or an unchanged copy of it."""
    try:
        if os.path.samefile(source, target):
            return True
        one, other = os.stat(source), os.stat(target)
    except OSError:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def are_equal(path: Path, other: Path) -> bool:
    """Return whether two files hold the same bytes; no, if one cannot be read."""
    with contextlib.suppress(OSError):
        return filecmp.cmp(path, other, shallow=False)
    return False


def is_spare(target: Path) -> bool:
    """Return whether deleting `target` loses nothing: it is absent, or the file has another
    name."""
    try:
        status = target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1)
