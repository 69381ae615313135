"""Queries a GPU's driver through NVML, and selects the GPU. Imports no torch and makes no CUDA
context.

A driver need not answer every query. Under WSL2 it lists no processes. For a MIG device it may not
report memory, and for a card that fell off the bus it reports nothing. A missing answer is returned
as unknown (0, or nothing), never as an error.

The GPU is never ambiguous. Devices are counted by PCI bus, as `nvidia-smi` counts them. Stages
start with CUDA_DEVICE_ORDER=PCI_BUS_ID, so torch counts alike. CUDA_VISIBLE_DEVICES takes numbers,
uuids, prefixes of uuids, and MIG devices. A name in it that the driver does not recognize is an
error: CUDA itself would silently continue. On a card divided into MIG devices, CUDA uses one of
them even if the card itself is named. Finding the NVML handle of the selected GPU makes no other
driver query.

The module also names the GPUs of this machine that Penstock cannot use, from what the kernel lists.

Exclusive use of a device is given by a kernel lock that is released when its holder dies.
"""

import ctypes
import functools
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, TypeAlias, TypeVar

from artifacts.disk.locks import hold
from artifacts.errors import EnvironmentFault

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDING = ("", "-1", "NoDevFiles")
"""First entries that hide every GPU; Slurm sets the last one for a job without a GPU."""
NO_DRIVER = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""NVML errors that mean that no NVIDIA GPU is in use; any other error means a broken driver."""
USE_CPU_HINT = f"`{VISIBLE}= penstock …` uses the CPU instead"

Answer = TypeVar("Answer")
GpuHandle: TypeAlias = "ctypes._Pointer[ctypes.Structure]"
"""NVML's handle of a GPU, or of a MIG device."""


def visible_entries() -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES before one that hides the rest; None: not set."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return None
    entries: list[str] = []
    for entry in map(str.strip, given.split(",")):
        if entry in HIDING:
            break
        entries.append(entry)
    return entries


def handle_of(device: str) -> "GpuHandle | None":
    """Return NVML's handle of a GPU; None for the CPU or if there is no GPU."""
    if not device.startswith("cuda"):
        return None
    visible = visible_entries()
    number = int(device.partition(":")[2] or 0)
    if visible is None:
        return found(str(number), named=False)
    return found(visible[number], named=True) if number < len(visible) else None


@functools.cache  # called twenty times per second
def found(name: str, *, named: bool) -> "GpuHandle | None":
    """Return the GPU that an entry names; if the user `named` it, a missing one is an error."""
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


def _numbered(nvml: ModuleType, number: int) -> "GpuHandle | None":
    """Return the card with that number; None if there is none. Raises EnvironmentFault if the
    driver cannot reach it."""
    try:
        card: GpuHandle = nvml.nvmlDeviceGetHandleByIndex(number)
        return card
    except (nvml.NVMLError_InvalidArgument, nvml.NVMLError_NotFound):
        return None
    except nvml.NVMLError as error:
        raise EnvironmentFault(
            f"the NVIDIA driver cannot reach GPU {number}: {_message_of(error)}",
            hint=f"See `nvidia-smi` and `dmesg | grep -i xid`; {USE_CPU_HINT}",
        ) from error


def _called(nvml: ModuleType, name: str) -> list[GpuHandle]:
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


def cards_of(nvml: ModuleType) -> Iterator[tuple[int, GpuHandle]]:
    """Yield the number and handle of each reachable card, in PCI bus order."""
    for number in range(_nvml_query(nvml, 0, nvml.nvmlDeviceGetCount)):
        card = _nvml_query(nvml, None, nvml.nvmlDeviceGetHandleByIndex, number)
        if card is not None:
            yield number, card


def parts_of(nvml: ModuleType, card: GpuHandle) -> Iterator[GpuHandle]:
    """Yield the MIG devices of a card; none for a MIG device or an undivided card."""
    if not _nvml_query(nvml, (0, 0), nvml.nvmlDeviceGetMigMode, card)[0]:
        return
    for number in range(_nvml_query(nvml, 0, nvml.nvmlDeviceGetMaxMigDeviceCount, card)):
        part = _nvml_query(nvml, None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, number)
        if part is not None:
            yield part


def _message_of(error: Exception) -> str:
    return str(error).rstrip(".")


def uuid_of(nvml: ModuleType, gpu: GpuHandle) -> str:
    return str(_nvml_query(nvml, "", nvml.nvmlDeviceGetUUID, gpu))


def _nvml_query(
    nvml: ModuleType, otherwise: Answer, function: Callable[..., Answer], *given: "GpuHandle | int"
) -> Answer:
    """Return NVML's answer, or `otherwise` if the call fails."""
    try:
        return function(*given)
    except nvml.NVMLError:
        return otherwise


OSRELEASE = Path("/proc/sys/kernel/osrelease")
"""File in which the kernel of WSL2 names Microsoft."""


def device_name() -> str:
    """Return `cuda:0` if this process has a GPU, else `cpu`. Raises EnvironmentFault if a named GPU
    is missing or the driver is broken."""
    return "cpu" if handle_of("cuda:0") is None else "cuda:0"


def device_count() -> int:
    """Return the number of GPUs that this process sees."""
    entries = visible_entries()
    if entries is not None:
        return len(entries)
    if not _driver_answers():
        return 0
    import pynvml

    return int(_nvml_query(pynvml, 0, pynvml.nvmlDeviceGetCount))


def hidden() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES hides every GPU."""
    return visible_entries() == []


def device_used_bytes(device: str) -> int:
    """Return the memory in use on a device by all processes; 0 for the CPU or if unknown."""
    return _query(device, lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).used), 0)


def device_free_bytes(device: str) -> tuple[int, int]:
    """Return the (free, total) memory of a GPU; zeros for the CPU or if unknown."""

    def query(nvml: ModuleType, gpu: GpuHandle) -> tuple[int, int]:
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        return int(memory.free), int(memory.total)

    return _query(device, query, (0, 0))


def device_holders(device: str) -> dict[int, int]:
    """Return process id → bytes held on the device, as far as the driver reports them. In a
    container the ids are those of the host."""

    def query(nvml: ModuleType, gpu: GpuHandle) -> dict[int, int]:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        return {process.pid: int(process.usedGpuMemory or 0) for process in running}

    return _query(device, query, {})


def device_uuid(device: str) -> str:
    """Return a name of the physical device, the same for all processes and records."""
    return _query(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetUUID(gpu)), device)


def device_model(device: str) -> str:
    """Return the product name of a GPU; empty if unknown."""
    return _query(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetName(gpu)), "")


def device_capability(device: str) -> tuple[int, int]:
    """Return the compute capability of a GPU, such as (8, 6); (0, 0) for the CPU or if unknown."""

    def query(nvml: ModuleType, gpu: GpuHandle) -> tuple[int, int]:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
        return int(major), int(minor)

    return _query(device, query, (0, 0))


def driver_version(device: str) -> str:
    """Return the version of the driver; empty for the CPU or if unknown."""
    return _query(device, lambda nvml, gpu: str(nvml.nvmlSystemGetDriverVersion()), "")


def other_devices(device: str) -> list[tuple[int, str, int]]:
    """Return number, name and bytes of other visible cards; none if the user has chosen one."""

    def query(nvml: ModuleType, gpu: GpuHandle) -> list[tuple[int, str, int]]:
        if visible_entries() is not None:
            return []  # the user has chosen a GPU
        ours = uuid_of(nvml, gpu)
        cards = [(n, card) for n, card in cards_of(nvml) if uuid_of(nvml, card) != ours]
        return [
            (
                number,
                str(nvml.nvmlDeviceGetName(card)),
                int(nvml.nvmlDeviceGetMemoryInfo(card).total),
            )
            for number, card in cards
            if not any(uuid_of(nvml, part) == ours for part in parts_of(nvml, card))
        ]

    return _query(device, query, [])


def on_wsl() -> bool:
    """Return whether this is Linux under Windows (WSL2), whose driver differs in some respects."""
    try:
        return "microsoft" in OSRELEASE.read_text(encoding="ascii", errors="replace").lower()
    except OSError:
        return False


def _query(
    device: str, query: Callable[[ModuleType, GpuHandle], Answer], unknown: Answer
) -> Answer:
    """Return the driver's answer to one query, or `unknown`."""
    gpu = handle_of(device)
    if gpu is None:
        return unknown
    import pynvml

    try:
        return query(pynvml, gpu)
    except pynvml.NVMLError:
        return unknown


CARDS = Path("/sys/class/drm")
AMD, INTEL, NVIDIA = "0x1002", "0x8086", "0x10de"
INTEGRATED = "0000:00:02.0"
"""PCI address of Intel's integrated graphics."""
MIN_VIDEO_BYTES = 4 << 30
"""Video memory from which an AMD GPU counts: integrated ones reserve less."""


def unused_gpu(cards: Path = CARDS) -> str:
    """Return a sentence on a GPU that is there while models run on the CPU; empty: none is."""
    if platform.system() == "Darwin":
        return "GPUs by Apple are not supported"
    for device in sorted(path.resolve() for path in cards.glob("card[0-9]*/device")):
        vendor = _read(device / "vendor")
        if vendor == NVIDIA:
            return "there is an NVIDIA GPU, but its driver does not respond: run nvidia-smi"
        if vendor == AMD and int(_read(device / "mem_info_vram_total") or 0) >= MIN_VIDEO_BYTES:
            return "there is a GPU by AMD, which is not supported"
        if vendor == INTEL and device.name != INTEGRATED:
            return "there is a GPU by Intel, which is not supported"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


CPU_LOCK = "PENSTOCK_CPU_LOCK"
"""Environment variable: a file whose lock stands for the CPU, on machines where the models of
several users would slow each other down."""
LOCKS = "PENSTOCK_LOCKS"
"""Environment variable: the folder of the GPU locks, if /tmp is not shared by all users."""


def hold_device(device: str, on_wait: Callable[[str], None]) -> IO[str] | None:
    """Wait for a device's lock and hold it until the process ends.

    `on_wait` is called once with the name of the holder if the lock is taken. Keep the returned
    file open.
    """
    path = lock_of(device)
    return None if path is None else hold(path, on_wait)


def lock_of(device: str) -> Path | None:
    """Return the path of the lock of a device; None without one. The CPU has a lock only if
    CPU_LOCK is set. Raises EnvironmentFault."""
    if device.startswith("cuda"):
        return lock_path(device)
    named = os.environ.get(CPU_LOCK, "")
    return Path(named) if device == "cpu" and named else None


def lock_path(device: str) -> Path:
    """Return the path of a GPU's lock: one file per physical device, the same for all users of this
    machine. Containers have a /tmp each, so they need a shared folder in PENSTOCK_LOCKS. Raises
    EnvironmentFault if that is not a folder."""
    folder = Path(os.environ.get(LOCKS) or "/tmp").absolute()
    if not folder.is_dir():
        raise EnvironmentFault(
            f"{LOCKS}: {folder} is not a folder",
            hint="Create it, the same for all containers of this host, or unset the variable",
        )
    return folder / f"penstock-{device_uuid(device).replace(':', '-')}.lock"
