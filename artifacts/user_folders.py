"""The locations of Penstock's per-user folders on this machine."""

import os
from pathlib import Path

from artifacts.errors import UsageError


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
