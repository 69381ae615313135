"""Finds the local folder of a store without any request to a bucket."""

from pathlib import Path

from artifacts.paths import folder_named
from artifacts.store import SCHEMES
from artifacts.stores.local import state_folder


def local_folder(url: str) -> Path | None:
    """Return the `local` folder of the store with this `url`; None if this machine has no such
    store."""
    scheme, mark, place = url.rpartition("://")
    if mark and scheme != "file":
        return state_folder(url) if scheme in SCHEMES else None
    folder = folder_named(place, "store")
    return folder if folder.is_dir() else None
