"""Finds where paths lead once links are followed; knows nothing of what lies there."""

import os
from collections.abc import Collection, Sequence
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


def refuse_foreign(folder: Path, own: Collection[str], records: Sequence[str]) -> None:
    """Refuse a folder with other content than a command's own. It is its own where one of its
    `records` lies in it, by their paths there, or nothing but entries of the names in `own`. Raises
    UsageError."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(
            f"{folder} is not a folder, or a file is in the place of one above it",
            hint="Give a new folder",
        ) from error
    except OSError:  # for the run to find out
        return
    others = [name for name in names if name not in own]
    if others and not any((folder / record).is_file() for record in records):
        raise UsageError(
            f"{folder} holds other files ({others[0]})",
            hint="Give a new folder, or remove that one",
        )


class RealPaths:
    """`os.path.realpath` for many files of few folders: each folder is walked down once."""

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
