"""Notes the digests of what this user's commands write, and checks what a folder states by them.

Anyone who can write into an output folder can place words, addresses and edits there. Penstock
believes only what it noted before it wrote it: in the user's state folder, and in the store if that
is a folder. The notes of a store count for users who name it. Notes hold no place, so that a folder
that was moved stays the user's own.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.disk.paths import folder_named, user_state
from artifacts.errors import UsageError
from artifacts.records.keys import append_line, read_lines

NOTES = "provenance.jsonl"
"""File of the notes, in the state folder of a user and in the folder of a store."""
EDIT, MARKER, ROUND = "edit", "marker", "round"
"""What is noted. A note of one purpose proves nothing for another."""
PRIVATE, SHARED = 0o600, 0o666
Proof = Callable[[Mapping[str, Json]], bool]
"""Tells whether an object is believed."""


def note(purpose: str, value: Mapping[str, Json], store: str) -> None:
    """Note durably that this user's command is about to write a JSON object: for this user, and for
    the store at this URL if it is a folder. A note that cannot be written is left out."""
    digest = digest_of([purpose, value])
    for path, mode in _notes(store):
        with contextlib.suppress(OSError):
            append_line(path, [digest], partial(_opened, mode))


def proof_by(store: str | None, purpose: str = EDIT) -> Proof:
    """Return a function that tells whether a JSON object was noted for this user, or in `store`:
    the URL of a store that the user named. It reads the notes again when they have grown."""
    paths = [path for path, _ in _notes(store)]
    noted, read = set[str](), list[int]()

    def is_proved(value: Mapping[str, Json]) -> bool:
        digest = digest_of([purpose, value])
        sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        if digest not in noted and sizes != read:
            read[:] = sizes
            noted.update(
                str(digest) for path in paths for line in read_lines(path) for digest in line
            )
        return digest in noted

    return is_proved


def anybody(_: Mapping[str, Json]) -> bool:
    """Believe every object: the user trusts the folder, or it is only shown."""
    return True


def _opened(mode: int, path: Path, flags: int, _: int) -> int:
    """Open a file with this mode, in which each line survives a power cut."""
    return os.open(path, flags | os.O_DSYNC, mode)


def _notes(store: str | None) -> Iterator[tuple[Path, int]]:
    """Yield the files of the notes with their modes: of this user, and of a store by its URL."""
    with contextlib.suppress(UsageError):
        yield user_state() / NOTES, PRIVATE
    scheme, _, place = (store or "").rpartition("://")
    if place and scheme in ("", "file"):
        with contextlib.suppress(UsageError, OSError):
            if (folder := folder_named(place, "store")).is_dir():
                yield folder / NOTES, SHARED
