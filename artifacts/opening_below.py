"""Writes below an output folder, which may come from another person, without following a link
there: a link would have the program write into any file of the user.

Files that are opened in place go through `open_below`. Files that are replaced whole, and new
folders, go through `refuse_links`, which knows the output folders that `guard` has named.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path, PurePath

from artifacts.regular_files import NotAFile, refuse_odd

LINK = "it is a link, and is not followed"
_guarded: set[str] = set()
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def guard(folder: Path) -> None:
    """Have this process follow no link below an output folder when it writes. The folder itself may
    be a link."""
    _guarded.add(os.path.abspath(folder))


def refuse_links(path: Path) -> None:
    """Raise NotAFile if a path, or a folder above it, is a link below a guarded folder."""
    parts = [os.path.abspath(path)]
    while (above := os.path.dirname(parts[-1])) != parts[-1]:
        parts.append(above)
    below = max((at for at, each in enumerate(parts) if each in _guarded), default=0)
    for each in parts[:below]:
        if os.path.islink(each):
            raise NotAFile(errno.ELOOP, LINK, each)


def open_below(folder: Path, name: str | PurePath, flags: int, mode: int = 0o644) -> int:
    """Open a file by its path below `folder`. The folder itself may be a link. With O_CREAT,
    missing folders between are created. Raises OSError, NotAFile for a link."""
    parts = PurePath(name).parts
    at = os.open(folder, FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            if flags & os.O_CREAT:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=at)
            inner = _opened(part, FOLDER, 0, at)
            os.close(at)
            at = inner
        file = _opened(parts[-1], flags | FILE, mode, at)
    finally:
        os.close(at)
    try:
        refuse_odd(os.fstat(file).st_mode, folder / name)
    except OSError:
        os.close(file)
        raise
    return file


def _opened(part: str, flags: int, mode: int, at: int) -> int:
    try:
        return os.open(part, flags, mode, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and stat.S_ISLNK(
            os.stat(part, dir_fd=at, follow_symlinks=False).st_mode
        ):
            path = os.path.join(os.readlink(f"/proc/self/fd/{at}"), part)
            raise NotAFile(errno.ELOOP, LINK, path) from error
        raise
