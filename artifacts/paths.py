"""Resolves paths whose folders may be links."""

import os
from pathlib import Path

from artifacts.errors import UsageError


def folder_named(text: str, name: str) -> Path:
    """Return the absolute path that a person means, who gave it as the option `name`. Raises
    UsageError for what no folder can be called."""
    try:
        path = Path(text).expanduser().absolute()
        os.lstat(os.fsencode(path))
    except (ValueError, RuntimeError) as error:  # a NUL, half a character, an unknown ~user
        raise UsageError(
            f"--{name} is {text!r}, which is no path ({error})", hint="Give a folder"
        ) from error
    except OSError:  # not there yet, or its name is too long: for the run to find out
        pass
    return path


class RealPaths:
    """`os.path.realpath` for many files in few folders. Each folder is resolved once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: str | Path) -> str:
        """Return the path with every link in it followed."""
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def lies_in(path: str, folder: str) -> bool:
    """Return whether a path is a folder or in it, wherever links lead."""
    real = os.path.realpath(folder)
    return os.path.commonpath([real, os.path.realpath(path)]) == real
