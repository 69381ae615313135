"""Queries a GPU's driver through NVML. Imports no torch and makes no CUDA context.

A driver need not answer every query. Under WSL2 it lists no processes. For a part of a card it may
not report memory, and for a card that fell off the bus it reports nothing. A missing answer is
returned as unknown (0, or nothing), never as an error, so callers must expect none.

The meant GPU is never ambiguous. Devices are counted as `nvidia-smi` counts them, by PCI bus.
Stages start with CUDA_DEVICE_ORDER=PCI_BUS_ID, so torch counts alike. A name in
CUDA_VISIBLE_DEVICES that the driver does not know is an error: CUDA itself would silently continue.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.process.nvml import Answer, cards_of, handle_of, parts_of, uuid_of, visible_entries

OSRELEASE = Path("/proc/sys/kernel/osrelease")
"""Where the kernel of WSL2 says that it is Microsoft's."""


def device_name() -> str:
    """Return `cuda:0` when there is a GPU for this process, else `cpu`. Raises EnvironmentFault for
    one that is named and not there, and for a driver that is out of order."""
    return "cpu" if handle_of("cuda:0") is None else "cuda:0"


def hidden() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES hides every GPU."""
    return visible_entries() == []


def device_used_bytes(device: str) -> int:
    """Return the memory in use on a device by everyone. It is 0 for the CPU or when the driver does
    not tell."""
    return _ask(device, lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).used), 0)


def device_free_bytes(device: str) -> tuple[int, int]:
    """Return the (free, total) memory of a GPU. Zeros for the CPU or when the driver does not
    tell."""

    def question(nvml: Any, gpu: Any) -> tuple[int, int]:
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        return int(memory.free), int(memory.total)

    return _ask(device, question, (0, 0))


def device_holders(device: str) -> dict[int, int]:
    """Return process id → bytes it holds on the device, as far as the driver tells. In a container
    the ids are those of the host."""

    def question(nvml: Any, gpu: Any) -> dict[int, int]:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        return {process.pid: int(process.usedGpuMemory or 0) for process in running}

    return _ask(device, question, {})


def device_uuid(device: str) -> str:
    """Return a name for the physical device that all processes agree on, for locks and records."""
    return _ask(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetUUID(gpu)), device)


def device_model(device: str) -> str:
    """Return what its maker calls a GPU; empty when the driver does not tell."""
    return _ask(device, lambda nvml, gpu: str(nvml.nvmlDeviceGetName(gpu)), "")


def device_capability(device: str) -> tuple[int, int]:
    """Return the compute capability of a GPU, such as (8, 6). It is (0, 0) for the CPU or when it
    is not told."""

    def question(nvml: Any, gpu: Any) -> tuple[int, int]:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
        return int(major), int(minor)

    return _ask(device, question, (0, 0))


def driver_version(device: str) -> str:
    """Return the version of the driver; empty for the CPU or when it is not told."""
    return _ask(device, lambda nvml, gpu: str(nvml.nvmlSystemGetDriverVersion()), "")


def other_devices(device: str) -> list[tuple[int, str, int]]:
    """Return the cards beside a GPU's own, where all may be had: number, name, bytes of memory."""

    def question(nvml: Any, gpu: Any) -> list[tuple[int, str, int]]:
        if visible_entries() is not None:
            return []  # somebody has chosen
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

    return _ask(device, question, [])


def on_wsl() -> bool:
    """Return whether this is Linux under Windows (WSL2), whose driver does some things
    differently."""
    try:
        return "microsoft" in OSRELEASE.read_text(encoding="ascii", errors="replace").lower()
    except OSError:
        return False


def _ask(device: str, question: Callable[[Any, Any], Answer], unknown: Answer) -> Answer:
    """Return the driver's answer to one question; `unknown` where there is none."""
    gpu = handle_of(device)
    if gpu is None:
        return unknown
    import pynvml

    try:
        return question(pynvml, gpu)
    except pynvml.NVMLError:
        return unknown
