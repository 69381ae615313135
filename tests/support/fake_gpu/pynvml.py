"""The driver's library, of cards that are written down in a folder: the names, the errors and the
refusals of nvidia-ml-py 13.

In front of the real one on the path. What the cards hold is what stand-in contexts have noted.
"""

import os
from dataclasses import dataclass
from types import SimpleNamespace

from tests.support.fake_gpu.state import Gpu, Machine, Slice, folder, held, lost, read_machine

ERRORS = {
    1: ("Uninitialized", "Uninitialized"),
    2: ("InvalidArgument", "Invalid Argument"),
    3: ("NotSupported", "Not Supported"),
    4: ("NoPermission", "Insufficient Permissions"),
    6: ("NotFound", "Not Found"),
    7: ("InsufficientSize", "Insufficient Size"),
    8: ("InsufficientPower", "Insufficient External Power"),
    9: ("DriverNotLoaded", "Driver Not Loaded"),
    10: ("Timeout", "Timeout"),
    11: ("IrqIssue", "Interrupt Request Issue"),
    12: ("LibraryNotFound", "NVML Shared Library Not Found"),
    13: ("FunctionNotFound", "Function Not Found"),
    15: ("GpuIsLost", "GPU is lost"),
    16: ("ResetRequired", "GPU requires restart"),
    17: ("OperatingSystem", "The operating system has blocked the request."),
    18: ("LibRmVersionMismatch", "RM has detected an NVML/RM version mismatch."),
    20: ("Memory", "Insufficient Memory"),
    999: ("Unknown", "Unknown Error"),
}
"""Number → the end of its class's name, and what it reads as."""
MOST_SLICES = 7


class NVMLError(Exception):
    """What the library raises; as in the real one, making it of a number gives that number's
    class."""

    value = 0

    def __new__(cls, *message: object) -> "NVMLError":
        made = Exception.__new__(
            BY_NUMBER.get(message[0], cls) if cls is NVMLError and message else cls
        )
        if type(made) is NVMLError and message and isinstance(message[0], int):
            made.value = message[0]
        return made

    def __str__(self) -> str:
        return ERRORS.get(self.value, ("", f"NVML Error with code {self.value}"))[1]


BY_NUMBER: dict[object, type[NVMLError]] = {
    number: type(f"NVMLError_{name}", (NVMLError,), {"value": number, "__module__": __name__})
    for number, (name, _) in ERRORS.items()
}
globals().update({error.__name__: error for error in BY_NUMBER.values()})


@dataclass(frozen=True, slots=True)
class Handle:
    """What the other calls take for a card, or for a slice of one."""

    uuid: str


_users = 0
"""Calls of nvmlInit without one of nvmlShutdown."""


def nvmlInit() -> None:
    global _users
    if name := read_machine().init_error:
        raise _error(name)
    _users += 1


def nvmlShutdown() -> None:
    global _users
    _machine()
    _users -= 1


def nvmlSystemGetDriverVersion() -> str:
    return _machine().driver_version


def nvmlDeviceGetCount() -> int:
    return len(_machine().gpus)


def nvmlDeviceGetHandleByIndex(index: int) -> Handle:
    gpus = _machine().gpus
    if not 0 <= index < len(gpus):
        raise _error("InvalidArgument")
    _there()
    return Handle(gpus[index].uuid)


def nvmlDeviceGetUUID(handle: Handle) -> str:
    _slot(handle)
    return handle.uuid


def nvmlDeviceGetName(handle: Handle) -> str:
    gpu, part = _slot(handle)
    return gpu.name if part is None else f"{gpu.name} MIG 1g.{part.total_bytes >> 30}gb"


def nvmlDeviceGetCudaComputeCapability(handle: Handle) -> tuple[int, int]:
    return _slot(handle)[0].capability


def nvmlDeviceGetMemoryInfo(handle: Handle, version: int | None = None) -> SimpleNamespace:
    machine, (gpu, part) = _machine(), _slot(handle)
    if not machine.memory_info:
        raise _error("NotSupported")
    if gpu.mig and part is None:  # to be told all, one needs to be root
        raise _error("NoPermission")
    total = (part or gpu).total_bytes
    used = machine.reserved_bytes + sum(_holders(gpu, part).values())
    return SimpleNamespace(total=total, used=used, free=max(0, total - used), version=version)


def nvmlDeviceGetComputeRunningProcesses(handle: Handle) -> list[SimpleNamespace]:
    machine, (gpu, part) = _machine(), _slot(handle)
    if not machine.process_list:
        raise _error("NotSupported")
    if gpu.mig and part is None:
        raise _error("NoPermission")
    return [
        SimpleNamespace(pid=pid, usedGpuMemory=None if machine.wsl else size)
        for pid, size in _holders(gpu, part).items()
    ]


def nvmlDeviceGetMigMode(handle: Handle) -> list[int]:
    """Now, and after the next reset."""
    gpu, part = _slot(handle)
    if part is not None:
        raise _error("InvalidArgument")
    if gpu.capability < (8, 0):
        raise _error("NotSupported")
    return [int(bool(gpu.mig))] * 2


def nvmlDeviceGetMaxMigDeviceCount(handle: Handle) -> int:
    """How many there may be, not how many there are; 0 where MIG is off."""
    return MOST_SLICES if _slot(handle)[0].mig else 0


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Handle, index: int) -> Handle:
    gpu, _ = _slot(handle)
    if not 0 <= index < MOST_SLICES:
        raise _error("InvalidArgument")
    if index >= len(gpu.mig):
        raise _error("NotFound")
    return Handle(gpu.mig[index].uuid)


def _error(name: str) -> NVMLError:
    return next(error for error in BY_NUMBER.values() if error.__name__ == f"NVMLError_{name}")()


def _machine() -> Machine:
    if not _users:
        raise _error("Uninitialized")
    return read_machine()


def _there() -> None:
    if lost(folder()):
        raise _error("GpuIsLost")


def _slot(handle: Handle) -> tuple[Gpu, Slice | None]:
    machine = _machine()
    _there()
    found = machine.slot(handle.uuid)
    if found is None:
        raise _error("InvalidArgument")
    return found


def _holders(gpu: Gpu, part: Slice | None) -> dict[int, int]:
    """Process id, as the driver numbers it, → bytes held of a card or slice."""
    machine = _machine()
    uuid = gpu.uuid if part is None else part.uuid
    ours = {pid: size for pid, (on, size) in held(folder()).items() if on == uuid}
    if machine.own_pid_as:
        first = sorted(ours, key=lambda pid: pid != os.getpid())
        ours = {machine.own_pid_as + at: ours[pid] for at, pid in enumerate(first)}
    return {**(part or gpu).others, **ours}
