"""Stores a user's secrets in files that only this user can read."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from artifacts.errors import EnvironmentFault
from artifacts.placing import rename_noreplace, sync_folder
from artifacts.regular import open_regular

PRIVATE = 0o600
SHORTEST = 16
"""Bytes that a secret has at the least: what is shorter was torn, emptied, or can be guessed."""
LONGEST = 1 << 12
BLANK = b" \t\r\n\0"
"""Bytes around a secret that are none of it: a disk that lost power may leave zeros."""


def stored_secret(path: Path, noun: str, hint: str) -> bytes | None:
    """Return the secret in a file without space around it, or None where there is no file. Raises
    EnvironmentFault for a file that holds none, in which it is called by the `noun`, and OSError
    for one that cannot be read."""
    try:
        with open_regular(path) as file:
            secret = file.read(LONGEST)
            if os.fstat(file.fileno()).st_mode & 0o777 != PRIVATE:  # others could have read it
                os.fchmod(file.fileno(), PRIVATE)
    except FileNotFoundError:
        return None
    if len(secret.strip(BLANK)) < SHORTEST:
        raise EnvironmentFault(f"{path} holds no {noun}", hint=hint)
    return secret


def own_secret(path: Path, noun: str, hint: str, new: Callable[[], bytes]) -> bytes:
    """Return the secret in a file, made by `new` if there is none. Two that make it at once end
    with the same. Raises EnvironmentFault for a file that holds none, and OSError."""
    if (secret := stored_secret(path, noun, hint)) is not None:
        return secret
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, half = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # its user's alone
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
