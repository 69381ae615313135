"""Leads from an address to the store there; knows nothing of what the bytes mean."""

from collections.abc import Callable

from artifacts.errors import UsageError
from artifacts.paths import folder_named
from artifacts.stores.folder import FolderStore, fault_of
from artifacts.stores.port import ObjectStat, Store

__all__ = ("FolderStore", "ObjectStat", "Store", "fault_of", "open_store")

SCHEMES: dict[str, Callable[[str], Store]] = {
    "file": lambda path: FolderStore(folder_named(path, "store")),
}
"""Scheme of an address → opens the store that the rest of it names; a path is a `file`."""


def open_store(url: str) -> Store:
    """Open the store at a folder path or an address of one of SCHEMES. Raises UsageError for an
    address it cannot serve."""
    scheme, mark, place = url.rpartition("://")
    opened = SCHEMES.get(scheme if mark else "file")
    if opened is None:
        raise UsageError(
            f"no store can be opened at {url}",
            hint="Give a folder, local or on a shared file system",
        )
    return opened(place)
