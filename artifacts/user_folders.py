"""The locations of Penstock's per-user folders on this machine."""

import os
from pathlib import Path

from artifacts.errors import UsageError


def cache_home() -> Path:
    """Return the folder of what this user's programs can do without. Raises UsageError for a user
    without a home."""
    return _folder("XDG_CACHE_HOME", "~/.cache")


def user_cache() -> Path:
    """Return the folder for what is known of this machine, whatever the store. Raises
    UsageError."""
    return cache_home() / "penstock"


def user_state() -> Path:
    """Return the folder of what this user keeps of the program on this machine. Raises
    UsageError."""
    return _folder("XDG_STATE_HOME", "~/.local/state") / "penstock"


def _folder(variable: str, usual: str) -> Path:
    folder = os.path.expanduser(os.environ.get(variable) or usual)
    if folder.startswith("~"):
        raise UsageError(
            f"{folder} is no folder: this user has no home",
            hint=f"Set HOME, or {variable} to a folder",
        )
    return Path(folder).absolute()
