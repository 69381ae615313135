"""Finds the NVML handle of the selected GPU. Makes no other driver query.

CUDA_VISIBLE_DEVICES takes numbers, uuids, prefixes of uuids, and MIG devices. On a card divided
into MIG devices, CUDA uses one of them even if the card itself is named.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from artifacts.errors import EnvironmentFault

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDING = ("", "-1", "NoDevFiles")
"""First entries that hide every GPU; Slurm sets the last one for a job without a GPU."""
NO_DRIVER = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""NVML errors that mean that no NVIDIA GPU is in use; any other error means a broken driver."""
USE_CPU_HINT = f"`{VISIBLE}= penstock …` uses the CPU instead"

Answer = TypeVar("Answer")


def visible_entries() -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES before the first one that hides the rest; None if
    it is not set."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return None
    entries: list[str] = []
    for entry in map(str.strip, given.split(",")):
        if entry in HIDING:
            break
        entries.append(entry)
    return entries


def handle_of(device: str) -> Any:
    """Return NVML's handle of a GPU; None for the CPU or if there is no GPU."""
    if not device.startswith("cuda"):
        return None
    visible = visible_entries()
    number = int(device.partition(":")[2] or 0)
    if visible is None:
        return found(str(number), named=False)
    return found(visible[number], named=True) if number < len(visible) else None


@functools.cache  # called twenty times per second
def found(name: str, *, named: bool) -> Any:
    """Return the GPU that an entry names. `named`: the user named it, so a missing GPU is an
    error."""
    if not _driver_answers():
        if named:
            raise _unknown(name, "no NVIDIA driver responds")
        return None
    import pynvml

    candidates = [_numbered(pynvml, int(name))] if name.isdigit() else _called(pynvml, name)
    if len(candidates) == 1 and candidates[0] is not None:
        return next(parts_of(pynvml, candidates[0]), candidates[0])
    if not named:
        return None
    known = ", ".join(f"{number} ({uuid_of(pynvml, gpu)})" for number, gpu in cards_of(pynvml))
    raise _unknown(name, f"the driver knows {known or 'none'}")


def _numbered(nvml: Any, number: int) -> Any:
    """Return the card with that number; None if there is none. Raises EnvironmentFault if the
    driver cannot reach it."""
    try:
        return nvml.nvmlDeviceGetHandleByIndex(number)
    except (nvml.NVMLError_InvalidArgument, nvml.NVMLError_NotFound):
        return None
    except nvml.NVMLError as error:
        raise EnvironmentFault(
            f"the NVIDIA driver cannot reach GPU {number}: {_message_of(error)}",
            hint=f"See `nvidia-smi` and `dmesg | grep -i xid`; {USE_CPU_HINT}",
        ) from error


def _called(nvml: Any, name: str) -> list[Any]:
    """Return the cards and MIG devices whose uuid begins with `name`, as CUDA does."""
    cards = [card for _, card in cards_of(nvml)]
    parts = [part for card in cards for part in parts_of(nvml, card)]
    return [gpu for gpu in (*cards, *parts) if uuid_of(nvml, gpu).startswith(name)]


def _unknown(name: str, known: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{VISIBLE}: unknown GPU {name} ({known})",
        hint=f"Name one that `nvidia-smi -L` lists, or unset it to use the first; {USE_CPU_HINT}",
    )


def _driver_answers() -> bool:
    """Return whether there is a driver. Raises EnvironmentFault if it is broken."""
    try:
        import pynvml
    except ImportError:
        return False
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if type(error).__name__ in NO_DRIVER:
            return False
        raise EnvironmentFault(
            f"the NVIDIA driver does not respond: {_message_of(error)}",
            hint=f"Check `nvidia-smi`; after a driver update, restart the machine; {USE_CPU_HINT}",
        ) from error
    return True


def cards_of(nvml: Any) -> Iterator[tuple[int, Any]]:
    """Yield the number and handle of each reachable card, in PCI bus order."""
    for number in range(_query(nvml, 0, nvml.nvmlDeviceGetCount)):
        card = _query(nvml, None, nvml.nvmlDeviceGetHandleByIndex, number)
        if card is not None:
            yield number, card


def parts_of(nvml: Any, card: Any) -> Iterator[Any]:
    """Yield the MIG devices of a card; none for a MIG device or an undivided card."""
    if not _query(nvml, (0, 0), nvml.nvmlDeviceGetMigMode, card)[0]:
        return
    for number in range(_query(nvml, 0, nvml.nvmlDeviceGetMaxMigDeviceCount, card)):
        part = _query(nvml, None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, number)
        if part is not None:
            yield part


def _message_of(error: Exception) -> str:
    return str(error).rstrip(".")


def uuid_of(nvml: Any, gpu: Any) -> str:
    return str(_query(nvml, "", nvml.nvmlDeviceGetUUID, gpu))


def _query(nvml: Any, otherwise: Answer, function: Callable[..., Answer], *given: Any) -> Answer:
    """Return NVML's answer, or `otherwise` if the call fails."""
    try:
        return function(*given)
    except nvml.NVMLError:
        return otherwise
