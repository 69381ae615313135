"""Opens the store at an address."""

from collections.abc import Callable

from artifacts.errors import UsageError
from artifacts.paths import folder_named
from artifacts.stores.folder import FolderStore, fault_of, is_full, read_fault
from artifacts.stores.protocol import ObjectStat, Store

__all__ = (
    "FolderStore",
    "ObjectStat",
    "Store",
    "fault_of",
    "is_full",
    "open_store",
    "read_fault",
)


def _in_bucket(scheme: str) -> Callable[[str], Store]:
    """Return a function that opens a bucket store. It imports obstore when called."""

    def opened(place: str) -> Store:
        from artifacts.stores.bucket_store import bucket_store

        return bucket_store(f"{scheme}://{place}")

    return opened


SCHEMES: dict[str, Callable[[str], Store]] = {
    "file": lambda path: FolderStore(folder_named(path, "store")),
    **{scheme: _in_bucket(scheme) for scheme in ("s3", "gs", "az")},
}
"""URL scheme → function that opens the store at the rest of the URL; a path is a `file`."""


def open_store(url: str) -> Store:
    """Open the store at a folder path or a URL of one of SCHEMES. Raises UsageError for an
    unsupported URL."""
    scheme, mark, place = url.rpartition("://")
    opened = SCHEMES.get(scheme if mark else "file")
    if opened is None:
        raise UsageError(
            f"unsupported store {url}",
            hint="Give a folder, local or on a shared file system, or s3://, gs:// or az://",
        )
    return opened(place)
