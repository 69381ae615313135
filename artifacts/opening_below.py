"""Opens files for writing below a folder that may come from another person, and follows no link
there: a link would have the program write into any file of the user."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path, PurePath

from artifacts.regular_files import NotAFile, refuse_odd

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


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
            raise NotAFile(errno.ELOOP, "it is a link, which is not followed", path) from error
        raise
