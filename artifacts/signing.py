"""Signs what a folder states about itself, and checks whether this user signed it.

Anyone who can write into a folder can place words, addresses and edits there. Penstock believes
only what is signed by the key of this user, or by the key of a store that this user named. The
user's secrets lie in files that only this user can read.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import ENCODER
from artifacts.paths import folder_named, rename_noreplace, sync_folder, user_state
from artifacts.regular_files import open_regular
from artifacts.store import disk_faults

PRIVATE = 0o600
SHORTEST = 16
"""Smallest size of a secret in bytes. Shorter ones are torn, empty or can be guessed."""
LONGEST = 1 << 12
BLANK = b" \t\r\n\0"
"""Bytes stripped around a secret. A disk that lost power may leave zeros."""


def stored_secret(path: Path, noun: str, hint: str) -> bytes | None:
    """Return the stripped secret in a file, or None without a file. Raises EnvironmentFault for a
    file without a secret (`noun` names it in the message), and OSError for an unreadable file."""
    try:
        with open_regular(path) as file:
            secret = file.read(LONGEST)
            if os.fstat(file.fileno()).st_mode & 0o777 != PRIVATE:  # others could have read it
                os.fchmod(file.fileno(), PRIVATE)
    except FileNotFoundError:
        return None
    if len(secret.strip(BLANK)) < SHORTEST:
        raise EnvironmentFault(f"{path} contains no {noun}", hint=hint)
    return secret


def own_secret(path: Path, noun: str, hint: str, new: Callable[[], bytes]) -> bytes:
    """Return the secret in a file, created by `new` if missing. Concurrent creators get the same
    secret. Raises EnvironmentFault for a file without a secret, and OSError."""
    if (secret := stored_secret(path, noun, hint)) is not None:
        return secret
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, half = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(new())
            file.flush()
            os.fsync(file.fileno())
        rename_noreplace(Path(half), path)  # unless another was first
        sync_folder(path.parent)
    finally:
        Path(half).unlink(missing_ok=True)
    found = stored_secret(path, noun, hint)
    if found is None:
        raise FileNotFoundError(path)
    return found


SECRET_BYTES = 32
SIGNATURES = "signatures"
"""Field of a JSON object that is signed."""
EDIT, MARKER, ROUND = "edit", "marker", "round"
"""What is signed."""
Proof = Callable[[Mapping[str, Any]], bool]
"""Tells whether a signed object is believed."""
STORE_KEY = "signing-key-{}"
"""File of the key of a user, by the number of the user, in the folder of a store."""


def user_secret() -> bytes:
    """Return the secret of this user on this machine; create it if there is none. Raises
    UsageError, EnvironmentFault."""
    path = user_state() / "review-secret"
    with disk_faults(path):
        return own_secret(
            path,
            "secret",
            "Delete it; the next run makes another, with other addresses and signatures",
            lambda: secrets.token_bytes(SECRET_BYTES),
        )


def signed(purpose: str, value: Mapping[str, Any], store: str) -> dict[str, Any]:
    """Return a JSON object with its signatures: by the key of this user, and by that of the store
    at this URL if it is a folder. One that cannot be made is left out. A signature of one purpose
    proves nothing for another."""
    macs = {name: _mac(key, purpose, value) for name, key in _keys(store, create=True)}
    return {**value, SIGNATURES: macs}


def proof_by(store: str | None, purpose: str = EDIT) -> Proof:
    """Return a function that tells whether this user signed a JSON object, or a holder of the key
    of `store`: the URL of a store that the user named."""
    keys = [*_keys(store, create=False)]

    def is_proved(value: Mapping[str, Any]) -> bool:
        macs = value.get(SIGNATURES, {})
        return any(
            hmac.compare_digest(
                str(macs.get(name, "")).encode(), _mac(key, purpose, value).encode()
            )
            for name, key in keys
        )

    return is_proved


def is_by_member(path: Path, store: str | None) -> bool:
    """Return whether another user wrote a file, and has a key in the store at this URL. The file
    system states the owner, so users share no secret. Files that a user unpacks from an archive
    belong to that user."""
    with contextlib.suppress(UsageError, OSError):
        folder, owner = _folder_of(store), os.lstat(path).st_uid
        # An archive that root unpacks may state any owner.
        if folder is not None and os.geteuid() not in (0, owner):
            return os.lstat(folder / STORE_KEY.format(owner)).st_uid == owner
    return False


def anybody(_: Mapping[str, Any]) -> bool:
    """Believe every object: the user trusts the folder, or it is only shown."""
    return True


def _mac(key: bytes, purpose: str, value: Mapping[str, Any]) -> str:
    bare = {name: each for name, each in value.items() if name != SIGNATURES}
    return hmac.new(key, ENCODER.encode([purpose, bare]).encode(), hashlib.sha256).hexdigest()


def _keys(store: str | None, *, create: bool) -> Iterator[tuple[str, bytes]]:
    with contextlib.suppress(UsageError, EnvironmentFault):
        yield "user", user_secret()
    with contextlib.suppress(UsageError, EnvironmentFault, OSError):
        if (folder := _folder_of(store)) is not None:
            yield "store", _store_key(folder, create=create)


def _folder_of(store: str | None) -> Path | None:
    """Return the folder of a store by its URL; None if it is none. Raises UsageError."""
    scheme, _, place = (store or "").rpartition("://")
    return folder_named(place, "store") if place and scheme in ("", "file") else None


def _store_key(folder: Path, *, create: bool) -> bytes:
    """Return the key in the folder of a store. Raises OSError if there is none, or if others could
    know it or may have placed it; EnvironmentFault."""
    path = folder / STORE_KEY.format(os.geteuid())
    if create and folder.is_dir() and not os.path.lexists(path):
        own_secret(path, "key", "Delete it", lambda: secrets.token_bytes(SECRET_BYTES))
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found, key = os.fstat(handle), file.read(SECRET_BYTES)
    is_private = stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == PRIVATE
    if found.st_uid != os.geteuid() or not is_private or len(key) < SECRET_BYTES:
        raise PermissionError(path)
    return key
