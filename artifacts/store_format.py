"""The format of a store's records, as one number that every store carries.

The number is an object of the store. Whoever writes records puts it into an empty store before the
first of them, so a store with records and no number has another format.
"""

from artifacts.errors import UsageError
from artifacts.store import Store

FORMAT = 1
"""Raised when records of this program would be misread by an earlier one, or theirs by this."""
NAME = "format"
"""Name of the object with the number."""
LONGEST = 20
"""Bytes of the object that are read."""
DIGEST = 64
"""Hex digits of a namespace."""
RECORDS_LEVELS = 3
"""Levels of a folder of records: kind, start of the namespace, namespace."""


def check_format(store: Store) -> bool:
    """Return whether a store has its number. Raises UsageError if it has records of another format,
    and EnvironmentFault if it cannot be read."""
    found = _number(store)
    if not found and _has_records(store):
        found = _number(store) or "none"  # another process may have put it since
    if found not in ("", str(FORMAT)):
        raise UsageError(
            f"{store.url} has records of another format ({found}; this version reads {FORMAT})",
            hint="Give another --store, or delete its records: penstock cache clear "
            f"--store {store.url}",
        )
    return bool(found)


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
        is_namespace = len(name) == DIGEST and len(start) == 2 and name.startswith(start)
        if is_namespace and any(store.list(folder)):  # an empty folder holds none
            return True
    return False
