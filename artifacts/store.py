"""Opens the store at an address."""

from collections.abc import Callable

from artifacts.errors import UsageError
from artifacts.paths import folder_named
from artifacts.stores.folder import FolderStore, fault_of
from artifacts.stores.port import ObjectStat, Store

__all__ = ("FolderStore", "ObjectStat", "Store", "fault_of", "open_store")


def _in_bucket(scheme: str) -> Callable[[str], Store]:
    """Return what opens a store in a bucket. Only then the library is loaded that asks for it."""

    def opened(place: str) -> Store:
        from artifacts.stores.bucket_store import bucket_store

        return bucket_store(f"{scheme}://{place}")

    return opened


SCHEMES: dict[str, Callable[[str], Store]] = {
    "file": lambda path: FolderStore(folder_named(path, "store")),
    **{scheme: _in_bucket(scheme) for scheme in ("s3", "gs", "az")},
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
            hint="Give a folder, local or on a shared file system, or s3://, gs:// or az://",
        )
    return opened(place)
