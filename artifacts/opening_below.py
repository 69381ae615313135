"""Writes below an output folder, which may come from another person, without following a link
there: a link would have the program write into any file of the user.

Files that are opened in place go through `open_below`, others and new folders through
`refuse_links`. Both know the output folders that `guard` has named.
"""

import errno
import os
from pathlib import Path

from artifacts.regular_files import NotAFile, refuse_odd

LINK = "it is a link, and is not followed"
SECOND_NAME = "it has a second name (a hard link), and is not written"
_guarded: set[Path] = set()
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def guard(folder: Path) -> None:
    """Have this process follow no link below an output folder when it writes. The folder itself may
    be a link."""
    _guarded.add(Path(os.path.abspath(folder)))


def refuse_links(path: Path) -> None:
    """Raise NotAFile if a path, or a folder above it, is a link below a guarded folder."""
    path = Path(os.path.abspath(path))
    parts = [path, *path.parents]
    below = max((at for at, each in enumerate(parts) if each in _guarded), default=0)
    for each in parts[:below]:
        if os.path.islink(each):
            raise NotAFile(errno.ELOOP, LINK, str(each))


def open_below(path: Path, flags: int, mode: int = 0o644) -> int:
    """Open a file in place. Raises OSError; NotAFile if it, or a folder above it and below a
    guarded one, is a link, also for a hard link: an archive can make either."""
    refuse_links(path.parent)
    try:
        file = os.open(path, flags | FILE, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAFile(errno.ELOOP, LINK, os.fspath(path)) from error
        raise
    try:
        found = os.fstat(file)
        refuse_odd(found.st_mode, path)
        if found.st_nlink > 1:
            raise NotAFile(errno.EMLINK, SECOND_NAME, os.fspath(path))
    except OSError:
        os.close(file)
        raise
    return file
