"""Where a user's own folders of the program are on this machine."""

import os
from pathlib import Path


def cache_home() -> Path:
    """Return the folder of what this user's programs can do without."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))


def user_cache() -> Path:
    """Return the folder for what is known of this machine, whatever the store."""
    return cache_home() / "penstock"


def user_state() -> Path:
    """Return the folder of what this user keeps of the program on this machine."""
    return Path(
        os.path.expanduser(os.environ.get("XDG_STATE_HOME") or "~/.local/state"), "penstock"
    )
