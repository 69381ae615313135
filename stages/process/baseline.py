"""Tells whether a GPU is given back when a stage's process has ended. It tells also what the GPU
had to bear; knows no stage."""

import time

from stages.process.device import device_free_bytes, device_holders, device_used_bytes, on_wsl

SLACK_BYTES = 64 << 20
"""How far above its baseline a device may stay after a stage and still count as given back."""
SECONDS = 5.0
"""How long to wait for the driver to take the memory back."""
FULL = 0.97
"""Part of a GPU that is in use when it is taken to be full."""


def wait_until_gone(device: str, pid: int) -> list[str]:
    """Wait until the driver lists a process no more that has ended. Return what a person should
    know. That it had company tells why the device may be in use after it."""
    deadline = time.monotonic() + SECONDS
    while (held := device_holders(device)).get(pid) is not None:
        if time.monotonic() >= deadline:
            return [f"the driver still lists {held[pid] >> 20} MiB of process {pid}, which ended"]
        time.sleep(0.1)
    return []


def given_back(device: str, before: int, peak: int) -> tuple[int, list[str]]:
    """Return the bytes of a device in use after a stage, and what a person should know. It waits
    until they are as few as `before`, or time is up; `peak` is the most that were in use."""
    if not device.startswith("cuda"):
        return 0, []
    allowed = before + SLACK_BYTES
    deadline = time.monotonic() + SECONDS
    while (used := device_used_bytes(device)) > allowed and time.monotonic() < deadline:
        time.sleep(0.1)
    warnings = []
    if used > allowed:
        others = ", ".join(f"process {pid}" for pid in device_holders(device)) or "the driver"
        warnings.append(
            f"{(used - allowed) >> 20} MiB of the GPU did not come back: {others} hold memory"
        )
    total = device_free_bytes(device)[1]
    if total and peak > FULL * total and on_wsl():
        warnings.append(
            "the GPU was full, and Windows then takes host memory, which is slow: give less "
            "--memory, or see WSL2 in docs/gpu.md"
        )
    return used, warnings
