"""Lists the files of a folder of media, and what of it is not read. Opens no file."""

import errno
import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path

from artifacts.files import OURS, SERVER_FOLDERS, is_hidden
from artifacts.plurals import counted
from artifacts.remote.addresses import is_address
from flows.media.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Selection, writable

LEADS_NOWHERE = "the link leads nowhere: its disk may be away"

SUBFOLDERS = 1000
"""Most folders below a source that are looked into for a note."""


def files_in(folder: Path, recursive: bool, unread: Callable[[OSError], None]) -> Iterator[str]:
    """Yield file names in order, relative to the folder. `unread` is called for each folder that
    cannot be read, and each link that leads nowhere."""
    for relative, entries in islice(_folders(folder, unread), None if recursive else 1):
        yield from (os.path.join(relative, name) for name in _file_names(entries))


def unread_in(sources: Iterable[str]) -> list[str]:
    """Return the folders below the sources, or below the first folder of a pattern, that cannot be
    read, and the links that lead nowhere, with the reasons."""
    found: list[OSError] = []
    for root in map(os.path.expanduser, sources):
        while glob.has_magic(root) and not os.path.isdir(root):
            root = os.path.dirname(root) or os.curdir
        if not is_address(root) and not os.path.isfile(root):
            deque(_folders(Path(root), found.append), 0)
    return [f"{writable(error.filename)} ({error.strerror})" for error in found]


def left_out_note(sources: Iterable[str], selection: Selection) -> str:
    """Return a note on folders, and on media of folders, in the sources that are not read, or an
    empty text."""
    unread: list[str] = []
    lost: list[OSError] = []
    names: list[str] = []
    of_servers: set[str] = set()
    for source in sources:
        root = Path(os.path.expanduser(source))
        below = _folders(root, lost.append) if os.path.isdir(root) else iter(())
        for relative, entries in islice(below, 1 + SUBFOLDERS):
            of_servers |= {e.name for e in entries if e.name in SERVER_FOLDERS and _is_folder(e)}
            if selection.recursive or not relative:
                names += _file_names(entries)
            elif any(map(selection.takes, _file_names(entries))):
                unread.append(os.path.join(source, relative, ""))
    not_taken = filter(None, [selection.not_taken(names)])
    if selection.recursive:
        listed = ", ".join(sorted(of_servers))
        note = f"not read: folders that servers and systems make for themselves ({listed})"
        return "; ".join([*[note] * bool(listed), *not_taken])
    first = "".join(map(writable, unread[:1])) + ", …" * (len(unread) > 1)
    note = f"{counted(len(unread), 'subfolder')} with media not read ({first}); add --recursive"
    away = [f"{writable(e.filename)}: {LEADS_NOWHERE}" for e in lost if e.strerror == LEADS_NOWHERE]
    return "; ".join([*[note] * bool(unread), *away[:1], *not_taken])


def _file_names(entries: Iterable["os.DirEntry[str]"]) -> Iterator[str]:
    return (e.name for e in entries if not is_hidden(e.name) and not _is_folder(e))


def _folders(
    folder: Path, unread: Callable[[OSError], None]
) -> Iterator[tuple[str, list["os.DirEntry[str]"]]]:
    """Yield the folder and those below it that are not hidden, in order, each with all that it
    holds. A folder that a link leads back to is entered once."""
    entered = set()
    left = [""]
    while left:  # not os.walk, which recurses for each subfolder
        relative = left.pop()
        place = os.path.join(folder, relative)
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
        if relative and any(entry.name == OURS for entry in each):
            continue  # output of a run: clips, and links to its media
        for link in (e for e in each if e.is_symlink() and not os.path.exists(e.path)):
            is_medium = os.path.splitext(link.name)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
            if not is_medium and not is_hidden(link.name):
                unread(FileNotFoundError(errno.ENOENT, LEADS_NOWHERE, link.path))
        yield relative, each
        folders = [e.name for e in reversed(each) if not is_hidden(e.name) and _is_folder(e)]
        left += (os.path.join(relative, name) for name in folders)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a link to itself
        return False
