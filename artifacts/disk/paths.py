"""Resolves, locates and renames paths: those that options name, and Penstock's own folders.

Folders on a path may be links, which the module resolves. It reads the files that options name, and
locates Penstock's per-user folders on this machine. It renames a finished file to its final name
without replacing an existing file.
"""

import ctypes
import errno
import os
from functools import cache
from pathlib import Path

from artifacts.disk.regular_files import read_bytes, user_text
from artifacts.errors import UsageError


def required_path(text: str, kind: str = "path") -> str:
    """Return a path of a command. Raises UsageError for an empty one, as an unset variable of a
    script gives it: it would mean the working folder."""
    if not text:
        raise UsageError(f"empty {kind}", hint="Name files or folders; . is this folder")
    return text


def folder_named(text: str, name: str) -> Path:
    """Return the absolute path of a folder given as the option `name`. Raises UsageError for an
    empty or invalid path, and for a relative one in a deleted working folder."""
    try:
        path = Path(required_path(text, name)).expanduser()
        path = path.absolute()
        os.lstat(os.fsencode(path))
    except (ValueError, RuntimeError) as error:  # a NUL, a lone surrogate, an unknown ~user
        raise UsageError(
            f"--{name} {text!r} is not a valid path ({error})", hint="Give a folder"
        ) from error
    except OSError as error:  # it does not exist: the run will report it
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"--{name}: the path is too long", hint="Give a folder") from error
        if not path.is_absolute():
            raise UsageError(
                f"--{name} {text}: the working folder cannot be found ({error.strerror})",
                hint="Change to a folder that exists, or give an absolute path",
            ) from error
    return path


def is_utf8(path: str | Path) -> bool:
    """Return whether a path, made absolute, is UTF-8. TOML and tokenizers take no other."""
    full = os.path.abspath(path)
    return os.fsencode(full).decode(errors="ignore") == full


def text_named(given: str | Path, name: str, limit: int, hint: str) -> str:
    """Return the text of a file given as the option `name`, of at most `limit` bytes. Raises
    UsageError."""
    try:
        return user_text(read_bytes(path := Path(given).expanduser(), limit), path)
    except (OSError, RuntimeError, ValueError) as error:  # also an unknown ~user, or a NUL byte
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--{name} {given} cannot be read: {reason}", hint=hint) from error


class RealPaths:
    """`os.path.realpath` for many files in few folders. Each folder is resolved once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: str | Path) -> str:
        """Return the path with all links resolved."""
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def lies_in(path: str, folder: str) -> bool:
    """Return whether a path is a folder or lies in it, after resolving links."""
    real = os.path.realpath(folder)
    return os.path.commonpath([real, os.path.realpath(path)]) == real


UNSUPPORTED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors with which a file system refuses an operation that it lacks, such as a hard link, a lock,
or a rename that replaces nothing."""
NO_LINKS = (*UNSUPPORTED, errno.EMLINK, errno.EXDEV)
"""Errors of a file system without hard links, or between file systems."""
AT_FDCWD = -100
"""Names are relative to the working folder."""
RENAME_NOREPLACE = 1


def rename_noreplace(half: Path, final: Path) -> bool:
    """Rename a finished file. Return False if another writer was first."""
    try:
        os.link(half, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _rename(half, final)  # no hard links here
    return True


def _rename(half: Path, final: Path) -> bool:
    """Do the same by a rename that replaces nothing. Readers rely on the first writer's offsets."""
    rename = _renameat2()
    if rename(AT_FDCWD, os.fsencode(half), AT_FDCWD, os.fsencode(final), RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code not in UNSUPPORTED:
        raise OSError(code, os.strerror(code), str(final))
    # No such rename here either: check first, which leaves a short race.
    if final.exists():
        return False
    os.replace(half, final)
    return True


@cache
def _renameat2() -> "ctypes._NamedFuncPointer":
    return ctypes.CDLL(None, use_errno=True).renameat2


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def cache_home() -> Path:
    """Return the user's cache folder. Raises UsageError for a user without a home."""
    return _folder("XDG_CACHE_HOME", "~/.cache")


def user_cache() -> Path:
    """Return the folder for data about this machine, for any store. Raises UsageError."""
    return cache_home() / "penstock"


def machine_cache() -> Path:
    """Return the folder for what is remembered about this machine. For a user without a home it is
    none: below it no file exists, and none can be made."""
    try:
        return user_cache()
    except UsageError:
        return Path(os.devnull) / "penstock"


def user_state() -> Path:
    """Return the folder of Penstock's state for this user. Raises UsageError."""
    return _folder("XDG_STATE_HOME", "~/.local/state") / "penstock"


def _folder(variable: str, usual: str) -> Path:
    folder = os.path.expanduser(os.environ.get(variable) or usual)
    if folder.startswith("~"):
        raise UsageError(
            f"{folder} cannot be resolved: this user has no home",
            hint=f"Set HOME, or {variable} to a folder",
        )
    return Path(folder).absolute()


NEARBY = "PENSTOCK_NEARBY"
"""Environment variable: the folder of the local cache. Default: the user's cache folder."""


def nearby_folder() -> Path:
    """Return the folder of the local cache of remote objects. Raises UsageError."""
    return _folder(NEARBY, "") if os.environ.get(NEARBY) else cache_home() / "penstock-nearby"
