"""Reads CPU features from the kernel, and identifies the machine. Imports no model library."""

from typing import Any

from flows.machine.versions import versions
from stages.process.cgroup import cores
from stages.process.device import device_uuid


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 multiplication (AVX512-BF16 or AMX)."""
    flags = cpu_line("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpu_line(name: str) -> str:
    """Return the first value of this name in /proc/cpuinfo, or an empty string."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith(name)), "")
    except OSError:
        return ""
    return line.partition(":")[2].strip()


def machine_identity(device: str) -> dict[str, Any]:
    """Return the facts that must be equal for a stored measurement to be valid."""
    return {
        "device": device_uuid(device),
        "cpu": cpu_line("model name"),
        "cores": cores(),
        "torch": versions().get("torch", ""),
    }
