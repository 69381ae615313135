"""Opens the store at an address, and checks the format of its records.

The local folder of a store is found without any request to a bucket.

The format of a store's records is one number, which every store carries as an object. A process
that writes records puts the number into an empty store before the first of them. A store with
records and no number therefore has another format.
"""

from collections.abc import Callable
from pathlib import Path

from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.packages import require_extra
from artifacts.records.stores.folder import FolderStore
from artifacts.records.stores.local import state_folder
from artifacts.records.stores.protocol import ObjectStat, Store

__all__ = ("FolderStore", "ObjectStat", "Store", "open_store")


def _in_bucket(url: str) -> Store:
    require_extra("bucket", f"a store at {url.partition('://')[0]}://")
    from artifacts.records.stores.bucket_store import bucket_store  # it imports obstore

    return bucket_store(url)


SCHEMES: dict[str, Callable[[str], Store]] = {
    "file": lambda url: FolderStore(folder_named(url.rpartition("://")[2], "store")),
    **dict.fromkeys(("s3", "gs", "az"), _in_bucket),
}
"""URL scheme → function that opens the store at the URL; a path is a `file`."""


def open_store(url: str) -> Store:
    """Open the store at a folder path or a URL of one of SCHEMES. Raises UsageError for an
    unsupported URL."""
    scheme, mark, _ = url.rpartition("://")
    opened = SCHEMES.get(scheme if mark else "file")
    if opened is None:
        raise UsageError(
            f"unsupported store {url}",
            hint="Give a folder, local or on a shared file system, or s3://, gs:// or az://",
        )
    return opened(url)


def local_folder(url: str) -> Path | None:
    """Return the `local` folder of the store with this `url`; None if this machine has no such
    store."""
    scheme, mark, place = url.rpartition("://")
    if mark and scheme != "file":
        return state_folder(url) if scheme in SCHEMES else None
    folder = folder_named(place, "store")
    return folder if folder.is_dir() else None


FORMAT = 1
"""Raised when records of this program would be misread by an earlier one, or theirs by this."""
NAME = "format"
"""Name of the object with the number."""
LONGEST = 20
"""Bytes of the object that are read."""
DIGEST = 64
"""Hex digits with which a namespace begins; most have no more."""
RECORDS_LEVELS = 3
"""Levels of a folder of records: kind, start of the namespace, namespace."""


def check_format(store: Store) -> bool:
    """Return whether a store has its number. Raises UsageError if it has records of another format,
    and EnvironmentFault if it cannot be read."""
    number = _number(store)
    if not number and _has_records(store):
        number = _number(store) or "none"  # another process may have put it since
    if number and not number.isdecimal():
        where = f"{store.url}/{NAME}"
        raise UsageError(
            f"{where} is {'missing' if number == 'none' else 'damaged'}, and there are records",
            hint=f"If this version of Penstock made them, write {FORMAT} into {where}: each is "
            "checked when it is read. Else give another --store, or delete them: penstock cache "
            f"clear --store {store.url}",
        )
    if number not in ("", str(FORMAT)):
        raise UsageError(
            f"{store.url} has records of another format ({number}; this version reads {FORMAT})",
            hint="Give another --store, or delete its records: penstock cache clear "
            f"--store {store.url}",
        )
    return bool(number)


def prepare_store(store: Store) -> None:
    """Make a store ready for records: put the number into an empty one. Raises UsageError for
    another format, and EnvironmentFault for a store that cannot be written."""
    has_number = check_format(store)
    store.check_writable()
    if not has_number and not store.put_if_absent(NAME, [f"{FORMAT}\n".encode()]):
        check_format(store)


def _number(store: Store) -> str:
    """Return the number of a store; empty: it has none."""
    try:
        text = store.get(NAME, 0, LONGEST)
    except FileNotFoundError:
        return ""
    return text.decode("ascii", "replace").strip() or "empty"


def _has_records(store: Store) -> bool:
    for folder in store.list("", levels=RECORDS_LEVELS):
        *_, start, name = ("", *folder.split("/"))
        is_namespace = len(name) >= DIGEST and len(start) == 2 and name.startswith(start)
        if is_namespace and any(store.list(folder)):  # an empty folder holds none
            return True
    return False
