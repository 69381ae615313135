"""What the driver says of a GPU, asked through NVML; imports no torch and makes no CUDA context.

A driver need not answer every question: under WSL2 it lists no processes, of a part of a card it
may not tell the memory, and of a card that fell off the bus it tells nothing. What is not answered
is told as unknown (0, or nothing), never as an error: who reckons with a figure must expect none.

Which GPU is meant is never in doubt. Devices are counted as `nvidia-smi` counts them, by PCI bus,
and stages are started with CUDA_DEVICE_ORDER=PCI_BUS_ID, so that torch counts alike. A name in
CUDA_VISIBLE_DEVICES that the driver does not know is an error: CUDA would go on without a word.
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from artifacts.errors import EnvironmentFault

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDING = ("", "-1", "NoDevFiles")
"""First entries that hide every GPU; the last is what Slurm sets for a job without one."""
NO_DRIVER = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""What NVML says where there is no NVIDIA GPU in use; anything else is a driver out of order."""
TO_THE_CPU = f"`{VISIBLE}= penstock …` uses the CPU instead"
OSRELEASE = Path("/proc/sys/kernel/osrelease")
"""Where the kernel of WSL2 says that it is Microsoft's."""

Answer = TypeVar("Answer")


def device_name() -> str:
    """`cuda:0` when there is a GPU for this process, else `cpu`. Raises EnvironmentFault for one
    that is named and not there, and for a driver that is out of order."""
    return "cpu" if _handle("cuda:0") is None else "cuda:0"


def hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU."""
    return _visible() == []


def device_used_bytes(device: str) -> int:
    """Memory in use on a device by everyone; 0 for the CPU or when the driver does not tell."""
    return _ask(device, lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).used), 0)


def device_free_bytes(device: str) -> tuple[int, int]:
    """(free, total) memory of a GPU; zeros for the CPU or when the driver does not tell."""

    def question(nvml: Any, gpu: Any) -> tuple[int, int]:
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        return int(memory.free), int(memory.total)

    return _ask(device, question, (0, 0))


def device_holders(device: str) -> dict[int, int]:
    """Process id → bytes it holds on the device, as far as the driver tells; in a container the
    ids are those of the host."""

    def question(nvml: Any, gpu: Any) -> dict[int, int]:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        return {process.pid: int(process.usedGpuMemory or 0) for process in running}

    return _ask(device, question, {})


def device_uuid(device: str) -> str:
    """A name for the physical device that all processes agree on, for locks and records."""
    return _ask(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetUUID(gpu)), device)


def device_model(device: str) -> str:
    """What its maker calls a GPU; empty when the driver does not tell."""
    return _ask(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetName(gpu)), "")


def device_capability(device: str) -> tuple[int, int]:
    """Compute capability of a GPU, such as (8, 6); (0, 0) for the CPU or when it is not told."""

    def question(nvml: Any, gpu: Any) -> tuple[int, int]:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
        return int(major), int(minor)

    return _ask(device, question, (0, 0))


def driver_version(device: str) -> str:
    """Version of the driver; empty for the CPU or when it is not told."""
    return _ask(device, lambda nvml, gpu: str(nvml.nvmlSystemGetDriverVersion()), "")


def on_wsl() -> bool:
    """Whether this is Linux under Windows (WSL2), whose driver does some things differently."""
    try:
        return "microsoft" in OSRELEASE.read_text(encoding="ascii", errors="replace").lower()
    except OSError:
        return False


def _ask(device: str, question: Callable[[Any, Any], Answer], unknown: Answer) -> Answer:
    """The driver's answer to one question; `unknown` where there is none."""
    gpu = _handle(device)
    if gpu is None:
        return unknown
    import pynvml

    try:
        return question(pynvml, gpu)
    except pynvml.NVMLError:
        return unknown


def _visible() -> list[str] | None:
    """Entries of CUDA_VISIBLE_DEVICES up to the first that hides the rest; None when not set."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return None
    entries: list[str] = []
    for entry in map(str.strip, given.split(",")):
        if entry in HIDING:
            break
        entries.append(entry)
    return entries


def _handle(device: str) -> Any:
    """NVML's name for a GPU; None for the CPU, and where there is none."""
    if not device.startswith("cuda"):
        return None
    visible = _visible()
    number = int(device.partition(":")[2] or 0)
    if visible is None:
        return _found(str(number), named=False)
    return _found(visible[number], named=True) if number < len(visible) else None


@functools.cache  # it is asked twenty times a second
def _found(name: str, *, named: bool) -> Any:
    """The GPU that an entry names; `named`: by the user, for whom it must be there."""
    if not _driver_answers():
        if named:
            raise _unknown(name, "no NVIDIA driver answers")
        return None
    import pynvml

    found = [_numbered(pynvml, int(name))] if name.isdigit() else _called(pynvml, name)
    if len(found) == 1 and found[0] is not None:
        # Of a card that is divided, CUDA sees a part.
        return next(_parts(pynvml, found[0]), found[0])
    if not named:
        return None
    known = ", ".join(f"{number} ({_uuid(pynvml, gpu)})" for number, gpu in _cards(pynvml))
    raise _unknown(name, f"the driver knows {known or 'none'}")


def _numbered(nvml: Any, number: int) -> Any:
    """The card of that number; None when there is none. Raises EnvironmentFault for one that the
    driver cannot reach."""
    try:
        return nvml.nvmlDeviceGetHandleByIndex(number)
    except (nvml.NVMLError_InvalidArgument, nvml.NVMLError_NotFound):
        return None
    except nvml.NVMLError as error:
        raise EnvironmentFault(
            f"the NVIDIA driver cannot reach GPU {number}: {error}",
            hint=f"See `nvidia-smi` and `dmesg | grep -i xid`; {TO_THE_CPU}",
        ) from error


def _called(nvml: Any, name: str) -> list[Any]:
    """Cards, and parts of cards, whose uuid begins so: CUDA takes a prefix."""
    cards = [card for _, card in _cards(nvml)]
    parts = [part for card in cards for part in _parts(nvml, card)]
    return [gpu for gpu in (*cards, *parts) if _uuid(nvml, gpu).lower().startswith(name.lower())]


def _unknown(name: str, known: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{VISIBLE} names {name}, and {known}",
        hint=f"Name one that `nvidia-smi -L` lists, or unset it to take the first; {TO_THE_CPU}",
    )


def _driver_answers() -> bool:
    """Whether there is a driver. Raises EnvironmentFault for one that is out of order."""
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
            f"the NVIDIA driver does not answer: {error}",
            hint=f"See that `nvidia-smi` works, after an update by a restart; {TO_THE_CPU}",
        ) from error
    return True


def _cards(nvml: Any) -> Iterator[tuple[int, Any]]:
    """The number of each card that can be reached, and the card, in the order of their PCI bus."""
    for number in range(_or(nvml, 0, nvml.nvmlDeviceGetCount)):
        card = _or(nvml, None, nvml.nvmlDeviceGetHandleByIndex, number)
        if card is not None:
            yield number, card


def _parts(nvml: Any, card: Any) -> Iterator[Any]:
    """The parts (MIG devices) that a card is divided into; none of a part, or a whole card."""
    if not _or(nvml, (0, 0), nvml.nvmlDeviceGetMigMode, card)[0]:
        return
    for number in range(_or(nvml, 0, nvml.nvmlDeviceGetMaxMigDeviceCount, card)):
        part = _or(nvml, None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, number)
        if part is not None:
            yield part


def _uuid(nvml: Any, gpu: Any) -> str:
    return str(_or(nvml, "", nvml.nvmlDeviceGetUUID, gpu))


def _or(nvml: Any, otherwise: Answer, function: Callable[..., Answer], *given: Any) -> Answer:
    """What NVML answers, or something else where it does not."""
    try:
        return function(*given)
    except nvml.NVMLError:
        return otherwise
