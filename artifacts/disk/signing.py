"""Keeps the secrets that sign the addresses of this user's pages, in files that only this user can
read."""

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from artifacts.disk.faults import disk_faults
from artifacts.disk.paths import rename_noreplace, sync_folder, user_state
from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault

PRIVATE = 0o600
SHORTEST = 16
"""Smallest size of a secret in bytes. Shorter ones are torn, empty or can be guessed."""
LONGEST = 1 << 12
BLANK = b" \t\r\n\0"
"""Bytes that do not count at the ends of a secret. A disk that lost power may leave zeros."""


def stored_secret(path: Path, noun: str, hint: str) -> bytes | None:
    """Return the secret in a file as it is, or None without a file. Raises EnvironmentFault for a
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
    secret = stored_secret(path, noun, hint)
    if secret is None:
        raise FileNotFoundError(path)
    return secret


SECRET_BYTES = 32


def user_secret() -> bytes:
    """Return the secret of this user on this machine; create it if there is none. Raises
    UsageError, EnvironmentFault."""
    path = user_state() / "review-secret"
    with disk_faults(path):
        return own_secret(
            path,
            "secret",
            "Delete it; the next run makes another, with other addresses",
            lambda: secrets.token_bytes(SECRET_BYTES),
        )
