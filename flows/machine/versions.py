"""Records the time, host, CPU features and package versions of a measurement or a run.

The kernel supplies the CPU features. The module also identifies the machine. It imports no model
library.
"""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stages.process.device import device_uuid
from stages.process.memory import cores

RECORDED = (
    "penstock",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "av",
    "onnxruntime-gpu",
    "llama-cpp-python",
    "prefect",
)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of packages that affect the output. They are recorded, but are no part of
    a cache key."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
