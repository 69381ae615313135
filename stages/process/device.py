"""Queries a GPU's driver through NVML. Imports no torch and makes no CUDA context.

A driver need not answer every query. Under WSL2 it lists no processes. For a MIG device it may not
report memory, and for a card that fell off the bus it reports nothing. A missing answer is returned
as unknown (0, or nothing), never as an error.

The GPU is never ambiguous. Devices are counted by PCI bus, as `nvidia-smi` counts them. Stages
start with CUDA_DEVICE_ORDER=PCI_BUS_ID, so torch counts alike. A name in CUDA_VISIBLE_DEVICES that
the driver does not know is an error: CUDA itself would silently continue.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.process.nvml import Answer, cards_of, handle_of, parts_of, uuid_of, visible_entries

OSRELEASE = Path("/proc/sys/kernel/osrelease")
"""File in which the kernel of WSL2 names Microsoft."""


def device_name() -> str:
    """Return `cuda:0` if this process has a GPU, else `cpu`. Raises EnvironmentFault if a named GPU
    is missing or the driver is broken."""
    return "cpu" if handle_of("cuda:0") is None else "cuda:0"


def hidden() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES hides every GPU."""
    return visible_entries() == []


def device_used_bytes(device: str) -> int:
    """Return the memory in use on a device by all processes; 0 for the CPU or if unknown."""
    return _query(device, lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).used), 0)


def device_free_bytes(device: str) -> tuple[int, int]:
    """Return the (free, total) memory of a GPU; zeros for the CPU or if unknown."""

    def query(nvml: Any, gpu: Any) -> tuple[int, int]:
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        return int(memory.free), int(memory.total)

    return _query(device, query, (0, 0))


def device_holders(device: str) -> dict[int, int]:
    """Return process id → bytes held on the device, as far as the driver reports them. In a
    container the ids are those of the host."""

    def query(nvml: Any, gpu: Any) -> dict[int, int]:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        return {process.pid: int(process.usedGpuMemory or 0) for process in running}

    return _query(device, query, {})


def device_uuid(device: str) -> str:
    """Return a name for the physical device that is the same for all processes, for locks and
    records."""
    return _query(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetUUID(gpu)), device)


def device_model(device: str) -> str:
    """Return the product name of a GPU; empty if unknown."""
    return _query(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetName(gpu)), "")


def device_capability(device: str) -> tuple[int, int]:
    """Return the compute capability of a GPU, such as (8, 6); (0, 0) for the CPU or if unknown."""

    def query(nvml: Any, gpu: Any) -> tuple[int, int]:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
        return int(major), int(minor)

    return _query(device, query, (0, 0))


def driver_version(device: str) -> str:
    """Return the version of the driver; empty for the CPU or if unknown."""
    return _query(device, lambda nvml, gpu: str(nvml.nvmlSystemGetDriverVersion()), "")


def other_devices(device: str) -> list[tuple[int, str, int]]:
    """Return the other visible cards: number, name, bytes of memory. Return none if
    CUDA_VISIBLE_DEVICES is set."""

    def query(nvml: Any, gpu: Any) -> list[tuple[int, str, int]]:
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


def _query(device: str, query: Callable[[Any, Any], Answer], unknown: Answer) -> Answer:
    """Return the driver's answer to one query, or `unknown`."""
    gpu = handle_of(device)
    if gpu is None:
        return unknown
    import pynvml

    try:
        return query(pynvml, gpu)
    except pynvml.NVMLError:
        return unknown
