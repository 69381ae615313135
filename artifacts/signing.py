"""Signs what a folder says about itself, and checks whether this user signed it.

Anyone who can write into a folder can place words, addresses and edits there. Only what is signed
by the key of this user, or by the key of a store that this user named, is believed.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import ENCODER
from artifacts.paths import folder_named
from artifacts.secret_files import PRIVATE, own_secret
from artifacts.store import fault_of
from artifacts.user_folders import user_state

SECRET_BYTES = 32
USER, STORE = "user", "store"
"""Names of the two signatures."""
STORE_KEY = "signing-key"
"""File of the key in the folder of a store."""


def user_secret() -> bytes:
    """Return the secret of this user on this machine; create it if there is none. Raises
    UsageError, EnvironmentFault."""
    path = user_state() / "review-secret"
    try:
        return own_secret(
            path,
            "secret",
            "Delete it; the next run makes another, with other addresses and signatures",
            lambda: secrets.token_bytes(SECRET_BYTES),
        )
    except OSError as error:
        raise fault_of(error, path) from error


def sign(purpose: str, value: Any, store: str) -> dict[str, str]:
    """Return the signatures of a JSON value: by the key of this user, and by that of the store at
    this URL if it is a folder. One that cannot be made is left out. A signature of one purpose
    proves nothing for another."""
    return {name: _mac(key, purpose, value) for name, key in _keys(store, create=True)}


def is_signed(purpose: str, value: Any, macs: Mapping[str, Any], store: str | None = None) -> bool:
    """Return whether one of the signatures is by the key of this user, or of `store`: the URL of a
    store that the user named."""
    return checker(purpose, store)(value, macs)


def checker(purpose: str, store: str | None = None) -> Callable[[Any, Mapping[str, Any]], bool]:
    """Return a function that tells the same of many values: it reads the keys once."""
    keys = [*_keys(store, create=False)]
    return lambda value, macs: any(
        hmac.compare_digest(str(macs.get(name, "")).encode(), _mac(key, purpose, value).encode())
        for name, key in keys
    )


def _mac(key: bytes, purpose: str, value: Any) -> str:
    return hmac.new(key, ENCODER.encode([purpose, value]).encode(), hashlib.sha256).hexdigest()


def _keys(store: str | None, *, create: bool) -> Iterator[tuple[str, bytes]]:
    with contextlib.suppress(UsageError, EnvironmentFault):
        yield USER, user_secret()
    scheme, _, place = (store or "").rpartition("://")
    if place and scheme in ("", "file"):
        with contextlib.suppress(UsageError, EnvironmentFault, OSError):
            yield STORE, _store_key(folder_named(place, "store"), create=create)


def _store_key(folder: Path, *, create: bool) -> bytes:
    """Return the key in the folder of a store. Raises OSError if there is none, or if others could
    know it or may have placed it; EnvironmentFault."""
    path = folder / STORE_KEY
    if create and folder.is_dir() and not os.path.lexists(path):
        own_secret(path, "key", "Delete it", lambda: secrets.token_bytes(SECRET_BYTES))
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found, key = os.fstat(handle), file.read(SECRET_BYTES)
    is_private = stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == PRIVATE
    if found.st_uid != os.geteuid() or not is_private or len(key) < SECRET_BYTES:
        raise PermissionError(path)
    return key
