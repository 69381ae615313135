"""Signs the command in a run record, and checks whether this user signed it on this machine.
Without a signature, anyone who can write into a run folder could place a command there.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from flows.results.signing import user_secret

MAC = "mac"
"""Field of a recorded command with its signature by the user's secret."""

COMMAND = "caption"
"""The command that may be repeated."""
OMITTED_OPTIONS = (
    "--prefect",
    "--retry-failed",
    "--json",
    "--quiet",
    "--trust-remote-code",
    "--replace",
)
"""Options left out of a repeated command: they do more than write files, hide its output, or allow
foreign code or rows to be dropped, which needs consent each time."""


def repeated(words: Sequence[str], *, by_rule: bool = True) -> list[str]:
    """Return the words of a command for another run. A command recorded before the default rule
    runs as stock unless it says otherwise."""
    kept = [word for word in words if word not in OMITTED_OPTIONS]
    if by_rule or any(word in ("--as-published", "--as-stock") for word in kept):
        return kept
    return [*kept, "--as-stock"]


def with_values(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the words of a command with other values of these options, which take one each."""
    kept, rest = list[str](), iter(words[1:])
    for word in rest:
        if word == "--":
            kept += [word, *rest]
        elif word in values:
            next(rest, None)
        elif word.partition("=")[0] not in values:
            kept.append(word)
    given = [word for pair in values.items() for word in pair]
    return [*words[:1], *given, *kept]


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
