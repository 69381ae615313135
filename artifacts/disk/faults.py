"""Tells faults of a disk as errors that say what to do about them."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from artifacts.disk.paths import NEARBY, lies_in, nearby_folder
from artifacts.disk.regular_files import DENIED, NotAFile
from artifacts.errors import EnvironmentFault

TEMPORARY = re.compile(r"penstock-[a-z]+-\w{8}(/|$)", re.ASCII)
"""A temporary folder that the program made, and not the user."""


def read_fault(error: OSError, where: Path) -> EnvironmentFault:
    """Return a failed read as an error that says what to do about it."""
    return EnvironmentFault(
        f"{where} cannot be read ({error.strerror or error})",
        hint="Check the disk, and who may read it; the same command then goes on",
    )


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or the one that it was raised from, is that of a full disk."""
    says_so = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return says_so or (error is not None and is_full(error.__cause__))


def fault_of(error: OSError, where: Path) -> EnvironmentFault:
    """Return a failed write as an error that says what to do about it."""
    if isinstance(error, NotAFile):
        return EnvironmentFault(f"{error.filename}: {error.strerror}", hint="Move it away")
    if is_full(error):
        variable = _variable_of(where)
        other = f"set {variable} to a folder elsewhere" if variable else "choose another folder"
        return EnvironmentFault(
            f"the disk of {where} is full, or your quota on it",
            hint=f"Free some space or {other}; the same command then goes on",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and not where.is_dir():
        return EnvironmentFault(
            f"{where} cannot be made: a file is in its place, or in that of a folder above it",
            hint="Give a folder with --store and --out",
        )
    if error.errno in DENIED and (closed := _closed_part(error, where)) is not None:
        return EnvironmentFault(
            f"{closed}, a part of {where} that another user made, cannot be written "
            f"({error.strerror})",
            hint=f"Have its owner run `chmod -R g+w {where}` and use umask 002, or give your own "
            "folder with --store and --out",
        )
    if error.errno in (*DENIED, errno.ENOENT):
        return EnvironmentFault(
            f"{where} cannot be written ({error.strerror})",
            hint="Give a folder you may write to with --store and --out",
        )
    return EnvironmentFault(
        f"{where}: {error.strerror or error}", hint="Check the disk; the same command then goes on"
    )


@contextlib.contextmanager
def disk_faults(where: Path) -> Iterator[None]:
    """Raise each OSError of a block as `fault_of` describes it."""
    try:
        yield
    except OSError as error:
        raise fault_of(error, where) from error


def removed_fault(folder: Path) -> EnvironmentFault:
    """Return the error of a run whose folder was removed while it worked."""
    return EnvironmentFault(
        f"{folder} is missing (removed or moved during the run)",
        hint="Finished work is kept; run the same command again to resume",
    )


def _variable_of(where: Path) -> str:
    """Return the environment variable that places a folder; empty for one that the user named."""
    if lies_in(str(where), str(nearby_folder())):
        return NEARBY
    with contextlib.suppress(OSError, ValueError):  # no such folder, or `where` lies elsewhere
        below = where.relative_to(tempfile.gettempdir())
        return "TMPDIR" if TEMPORARY.match(str(below)) else ""
    return ""


def _closed_part(error: OSError, where: Path) -> Path | None:
    """Return the folder of another user that a failed write met below `where`, which itself can be
    written; None if there is none."""
    if not isinstance(error.filename, str | bytes) or not os.access(where, os.W_OK):
        return None
    folder = Path(os.fsdecode(error.filename)).parent
    with contextlib.suppress(OSError):
        while where in folder.parents:
            if folder.exists():
                is_closed = folder.stat().st_uid != os.geteuid() and not os.access(folder, os.W_OK)
                return folder if is_closed else None
            folder = folder.parent
    return None
