"""Atomic file writes: a reader sees the old file or the new one, never a partial one."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from artifacts.errors import EnvironmentFault
from artifacts.store import fault_of

HALF = ".penstock-"
"""Beginning of the name of a file while it is written."""
OURS = f"{HALF}made"
"""A file that marks a folder of media that a run made: nobody means it who names a folder above."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written, which takes its place when the block ends well. Raises
    EnvironmentFault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, half = tempfile.mkstemp(dir=path.parent, prefix=HALF)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o666 & ~UMASK)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        except BaseException:
            os.unlink(half)
            raise
    except IsADirectoryError as error:
        raise EnvironmentFault(
            f"{path} cannot be written: a folder is in its place", hint="Move that folder away"
        ) from error
    except OSError as error:
        raise fault_of(error, path.parent) from error


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write a UTF-8 file. Raises EnvironmentFault."""
    with whole_file(path) as file:
        file.writelines(piece.encode("utf-8", errors="replace") for piece in pieces)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read. Raises EnvironmentFault."""
    write_text(path, [json.dumps(value, indent=1, ensure_ascii=False) + "\n"])


def read_kept(path: Path, form: int) -> dict[str, Any] | None:
    """Return what a JSON file of that `format` holds beside it. It is None where there is none, or
    one of another version."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value if value.pop("format") == form else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder to which one process writes."""
    for path in folder.glob(f"{HALF}*"):
        if path.is_file() and path.name != OURS:
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()
"""Who may not read what is written, by the user's wish. It is asked once: while it is, another
thread's files would be everybody's."""
