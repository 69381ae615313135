"""Signs the command in a run record, and checks whether this user signed it on this machine.
Without a signature, anyone who can write into a run folder could place a command there.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.secret_files import own_secret
from artifacts.store import fault_of
from artifacts.user_folders import user_state

SECRET_BYTES = 32
MAC = "mac"
"""Field of a recorded command with its signature by the user's secret."""


def user_secret() -> bytes:
    """Return the secret of this user on this machine; create it if there is none. Raises
    UsageError, EnvironmentFault."""
    path = user_state() / "review-secret"
    try:
        return own_secret(
            path,
            "secret",
            "Delete it; the next `penstock review` makes another, with other addresses",
            lambda: secrets.token_bytes(SECRET_BYTES),
        )
    except OSError as error:
        raise fault_of(error, path) from error


def signed_command(words: Sequence[str], folder: str) -> dict[str, Any]:
    """Return a command as the run record stores it, unsigned if no secret can be stored."""
    command = {"words": [*words], "folder": folder}
    try:
        return {**command, MAC: _mac(command)}
    except (UsageError, EnvironmentFault):
        return command


def is_own_command(command: Mapping[str, Any]) -> bool:
    """Return whether this user ran a recorded command on this machine. Raises UsageError,
    EnvironmentFault."""
    given = command.get(MAC, "")
    return bool(given) and hmac.compare_digest(given.encode(), _mac(command).encode())


def _mac(command: Mapping[str, Any]) -> str:
    payload = json.dumps(["command", command["folder"], command["words"]]).encode()
    return hmac.new(user_secret(), payload, hashlib.sha256).hexdigest()
