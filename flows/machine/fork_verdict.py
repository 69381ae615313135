"""Remembers whether stages can be forked on this machine's GPU, as `penstock doctor --measure`
found out. A result holds for one card, driver and torch."""

import contextlib
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.files import read_kept, write_json
from artifacts.keys import digest_of
from artifacts.user_folders import machine_cache
from flows.machine.versions import now, versions
from stages.process.device import device_model, device_name, device_uuid, driver_version

FORMAT = 1
"""Version of the trial; raised when it tests something else."""
FORK_SIGNS = ("forked subprocess", "initialization error")
"""Texts in the errors of torch and of CUDA if a process cannot use CUDA because it was forked."""
UNTRIED = "forks were not tried on this card; run `penstock doctor --measure`"


def refusal_to_fork() -> str:
    """Return why stages are started as fresh processes on this machine; empty if they are
    forked."""
    try:
        device = device_name()
        if device == "cpu":
            return ""
        value = read_kept(_path(device), FORMAT)
    except (EnvironmentFault, UsageError) as error:
        return error.message
    if value is None:
        return UNTRIED
    return f"forks failed on this card: {why}" if (why := value.get("why", UNTRIED)) else ""


def start_line() -> str:
    """Describe in one line how stages are started on this machine."""
    if why := refusal_to_fork():
        return f"each stage imports its libraries anew: {why}"
    return "stages are forked from one process that has imported their libraries"


def remember(device: str, why: str) -> None:
    """Store the result of the trial: why stages cannot be forked, or an empty text. Raises
    EnvironmentFault."""
    write_json(_path(device), {"format": FORMAT, **_card(device), "tried": now(), "why": why})


def forget(device: str) -> None:
    """Delete the result for a card, so that its stages are started as fresh processes."""
    with contextlib.suppress(OSError, UsageError):
        _path(device).unlink(missing_ok=True)


def is_fork_fault(error: PenstockError) -> bool:
    """Return whether a stage failed because a forked process could not use CUDA."""
    return any(sign in error.message for sign in FORK_SIGNS)


def _card(device: str) -> dict[str, Any]:
    return {
        "card": device_model(device),
        "uuid": device_uuid(device),
        "driver": driver_version(device),
        "torch": versions().get("torch", ""),
    }


def _path(device: str) -> Path:
    return machine_cache() / "forks" / f"{digest_of(list(_card(device).values()))[:16]}.json"
