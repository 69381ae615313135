"""Resolves paths whose folders may be links, and reads files that options name."""

import errno
import os
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.regular_files import read_bytes, user_text


def path_given(text: str, kind: str = "path") -> str:
    """Return a path of a command. Raises UsageError for an empty one, as an unset variable of a
    script gives it: it would mean the working folder."""
    if not text:
        raise UsageError(f"empty {kind}", hint="Name files or folders; . is this folder")
    return text


def folder_named(text: str, name: str) -> Path:
    """Return the absolute path of a folder given as the option `name`. Raises UsageError for an
    empty or invalid path."""
    try:
        path = Path(path_given(text, name)).expanduser().absolute()
        os.lstat(os.fsencode(path))
    except (ValueError, RuntimeError) as error:  # a NUL, a lone surrogate, an unknown ~user
        raise UsageError(
            f"--{name} {text!r} is not a valid path ({error})", hint="Give a folder"
        ) from error
    except OSError as error:  # it does not exist: the run will report it
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"--{name}: the path is too long", hint="Give a folder") from error
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
