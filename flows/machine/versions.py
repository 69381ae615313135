"""Records the time, host and package versions of a measurement or a run."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flows.machine.cpu import cpu_line
from stages.process.cgroup import cores
from stages.process.device import device_uuid

RECORDED = (
    "penstock",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "av",
    "onnxruntime-gpu",
    "prefect",
)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of what decides bytes; they are recorded, not keyed."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine_identity(device: str) -> dict[str, Any]:
    """Return what has to be the same for a measurement of a device to hold."""
    return {
        "device": device_uuid(device),
        "cpu": cpu_line("model name"),
        "cores": cores(),
        "torch": versions().get("torch", ""),
    }
