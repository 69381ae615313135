"""Opens regular files only. A FIFO or a device at the same path could block its reader for ever.

What is written below an output folder, which may come from another person, follows no link there:
a link would have the program write into any file of the user. Files that are opened in place go
through `open_below`, others and new folders through `refuse_links`. Both know the output folders
that `guard` has named.
"""

import codecs
import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from itertools import islice
from pathlib import Path

from artifacts.errors import EnvironmentFault

KINDS: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a link": stat.S_ISLNK,
}
"""Names of the kinds that are not regular files."""
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
LINK = "it is a link, and is not followed"
SECOND_NAME = "it has a second name (a hard link)"
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
LOG_BYTES = 4000
_guarded: set[Path] = set()


class NotAFile(OSError):
    """The path leads to something other than a regular file, which was not opened."""


def is_denied(error: BaseException | None) -> bool:
    """Return whether a write failed for lack of rights, or on a file system that is only read."""
    return isinstance(error, OSError) and error.errno in DENIED


def odd_kind(mode: int) -> str:
    """Return the name of a kind by its `st_mode`; empty for a regular file."""
    return next((name for name, fits in KINDS.items() if fits(mode)), "")


def odd_thing(path: str | os.PathLike[str]) -> str:
    """Return what lies at a path, links followed. Return an empty string for a file or folder, and
    if nothing is there or access is denied."""
    try:
        kind = odd_kind(os.stat(path).st_mode)
    except (OSError, ValueError):
        return ""
    return "" if kind == "a folder" else kind


def irreplaceable_kind(path: str | os.PathLike[str]) -> str:
    """Return what lies at a path that no file may replace, links followed: a device, a FIFO or a
    socket, or an open stream of this program. Return an empty string for anything else."""
    if odd := odd_thing(path):
        return odd
    # `/dev/stdout` leads to a regular file after `> file`, and the link itself would be replaced.
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(os.stat(path), os.fstat(stream)):
                return "an open stream of this command"
    return ""


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
    """Open a regular file for reading. Raises OSError, including NotAFile, without blocking."""
    refuse_odd(os.stat(path).st_mode, path)  # opening some devices has side effects
    # It may have been replaced since. Without O_NONBLOCK, opening a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        refuse_odd(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        yield file


def log_end(log: Path) -> str:
    """Return the last part of a log; empty if it cannot be read."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(log: Path) -> str:
    return log_end(log).strip().rpartition("\n")[2]


def refuse_odd(mode: int, path: str | os.PathLike[str]) -> None:
    """Raise NotAFile unless the mode is that of a regular file."""
    if kind := odd_kind(mode):
        raise NotAFile(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))


def read_bytes(path: Path, limit: int, lines: int | None = None) -> bytes:
    """Return the content of a file of at most `limit` bytes, or its first `lines` within the limit.
    Raises OSError."""
    with open_regular(path) as file:
        content = file.read(limit + 1) if lines is None else b"".join(islice(file, lines))
    if len(content) > limit:
        shown = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        reason = f"it is larger than the limit of {shown}"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return content


def read_text(path: Path, limit: int, lines: int | None = None) -> str:
    """Return the same as text, of a file that programs write. Raises OSError, also for invalid
    UTF-8."""
    try:
        return read_bytes(path, limit, lines).decode()
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, "it is not UTF-8 text", os.fspath(path)) from error


def user_text(content: bytes, path: Path) -> str:
    """Return the text of a user's file, saved by any editor: UTF-8 with or without a byte order
    mark, lines that end in LF or CRLF. Raises OSError for UTF-16 and what is no text."""
    reason = "it is UTF-16"
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        reason = "it is not UTF-8 text"
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode("utf-8-sig")
            if "\0" not in text:
                return text.replace("\r\n", "\n")
            reason = "it holds a NUL byte, as UTF-16 does"  # without a mark, that may be UTF-8
    raise OSError(errno.EILSEQ, f"{reason}: save it as UTF-8", os.fspath(path))


def link_out(path: Path, root: Path) -> str:
    """Return why a file that counts as the user's own words is not read, because it leads out of
    the folder `root` to which it belongs; empty: it does not. An archive can make such a link to
    any file of the user. Those of the hub's cache lead from its snapshots to its blobs."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    is_blob = real.parent.name == "blobs" and root.is_relative_to(real.parents[1] / "snapshots")
    if not real.is_relative_to(root) and not is_blob:
        return f"it is a link out of {root}"
    return SECOND_NAME if os.stat(path).st_nlink > 1 else ""


def guard(folder: Path) -> None:
    """Have this process follow no link below an output folder when it writes. The folder itself may
    be a link."""
    _guarded.add(Path(os.path.abspath(folder)))


def refuse_links(path: Path) -> None:
    """Raise EnvironmentFault if a path, or a folder above it, is a link below a guarded folder."""
    if link := _link_in(path):
        raise EnvironmentFault(f"{link}: {LINK}", hint="Move it away")


def _link_in(path: Path) -> Path | None:
    path = Path(os.path.abspath(path))
    parts = [path, *path.parents]
    below = max((at for at, part in enumerate(parts) if part in _guarded), default=0)
    return next((part for part in parts[:below] if os.path.islink(part)), None)


def open_below(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file in place. Raises OSError; NotAFile if it, or a folder above it and below a
    guarded one, is a link, also for a hard link: an archive can make either."""
    if link := _link_in(path.parent):
        raise NotAFile(errno.ELOOP, LINK, str(link))
    try:
        file = os.open(path, flags | FILE, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAFile(errno.ELOOP, LINK, os.fspath(path)) from error
        raise
    try:
        opened = os.fstat(file)
        refuse_odd(opened.st_mode, path)
        if opened.st_nlink > 1:
            raise NotAFile(errno.EMLINK, SECOND_NAME, os.fspath(path))
    except OSError:
        os.close(file)
        raise
    return file
