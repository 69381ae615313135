"""Resolves which GPU is meant to its NVML handle. Makes no other driver query.

CUDA_VISIBLE_DEVICES takes numbers, uuids, prefixes of uuids, and parts of a card (MIG devices). On
a divided card CUDA uses a part even if the card itself is named.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from artifacts.errors import EnvironmentFault

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDING = ("", "-1", "NoDevFiles")
"""First entries that hide every GPU; the last is what Slurm sets for a job without one."""
NO_DRIVER = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""Errors of NVML where there is no NVIDIA GPU in use; anything else is a driver out of order."""
TO_THE_CPU = f"`{VISIBLE}= penstock …` uses the CPU instead"

Answer = TypeVar("Answer")


def visible_entries() -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES up to the first that hides the rest. None when not
    set."""
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
    """Return NVML's name for a GPU; None for the CPU, and where there is none."""
    if not device.startswith("cuda"):
        return None
    visible = visible_entries()
    number = int(device.partition(":")[2] or 0)
    if visible is None:
        return found(str(number), named=False)
    return found(visible[number], named=True) if number < len(visible) else None


@functools.cache  # it is asked twenty times a second
def found(name: str, *, named: bool) -> Any:
    """Return the GPU that an entry names. `named` is whether the user named it, for whom it must be
    there."""
    if not _driver_answers():
        if named:
            raise _unknown(name, "no NVIDIA driver answers")
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
    """Return the card of that number; None when there is none. Raises EnvironmentFault for one that
    the driver cannot reach."""
    try:
        return nvml.nvmlDeviceGetHandleByIndex(number)
    except (nvml.NVMLError_InvalidArgument, nvml.NVMLError_NotFound):
        return None
    except nvml.NVMLError as error:
        raise EnvironmentFault(
            f"the NVIDIA driver cannot reach GPU {number}: {_message_of(error)}",
            hint=f"See `nvidia-smi` and `dmesg | grep -i xid`; {TO_THE_CPU}",
        ) from error


def _called(nvml: Any, name: str) -> list[Any]:
    """Return cards, and parts of cards, whose uuid begins so: CUDA takes a prefix."""
    cards = [card for _, card in cards_of(nvml)]
    parts = [part for card in cards for part in parts_of(nvml, card)]
    return [gpu for gpu in (*cards, *parts) if uuid_of(nvml, gpu).startswith(name)]


def _unknown(name: str, known: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{VISIBLE} names {name}, and {known}",
        hint=f"Name one that `nvidia-smi -L` lists, or unset it to take the first; {TO_THE_CPU}",
    )


def _driver_answers() -> bool:
    """Return whether there is a driver. Raises EnvironmentFault for one that is out of order."""
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
            f"the NVIDIA driver does not answer: {_message_of(error)}",
            hint=f"See that `nvidia-smi` works, after an update by a restart; {TO_THE_CPU}",
        ) from error
    return True


def cards_of(nvml: Any) -> Iterator[tuple[int, Any]]:
    """Yield the number of each card that can be reached, and the card. They come in the order of
    their PCI bus."""
    for number in range(_query(nvml, 0, nvml.nvmlDeviceGetCount)):
        card = _query(nvml, None, nvml.nvmlDeviceGetHandleByIndex, number)
        if card is not None:
            yield number, card


def parts_of(nvml: Any, card: Any) -> Iterator[Any]:
    """Yield the parts (MIG devices) that a card is divided into; none of a part, or a whole
    card."""
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
    """Return what NVML answers, or something else where it does not."""
    try:
        return function(*given)
    except nvml.NVMLError:
        return otherwise
