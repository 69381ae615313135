"""Tests a GPU in a stage of its own, and limits a process to its share of the GPU's memory.

For the limit, the driver's own use for the process is measured, and torch's allocator is limited to
the rest. CUDA loads libraries and kernels on first use. So the driver's use is measured after a
matrix product and a convolution in the stage's dtype. Anything loaded later would exceed the limit.
"""

import os
from dataclasses import dataclass
from typing import Any

from artifacts.errors import EnvironmentFault, OutOfMemory
from stages.process.device import (
    VISIBLE,
    device_free_bytes,
    device_holders,
    device_used_bytes,
    device_uuid,
)
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

CONTEXT_BYTES = 512 << 20
"""Memory that the driver takes for a process (context and loaded kernels), used until it is
measured or if it is unknown. It is 250 MiB on older cards, 600 MiB on newer ones."""
SLACK_BYTES = 64 << 20
"""Tolerated difference between two measurements of the memory that a process holds."""
SPARE_BYTES = 128 << 20
"""A GPU with less free memory counts as full, whatever the limit allows."""
WARM_EDGE = 256
"""Edge of the matrices and of the image that make CUDA load its libraries."""


@dataclass(frozen=True, slots=True)
class DeviceLimit:
    """The GPU memory limit of this process."""

    device: str
    bytes: int
    """Limit in bytes, the driver's part included."""
    context: int
    """Bytes of the driver's part."""

    def taken(self) -> int:
        """Return the peak memory of this process, as far as torch knows."""
        import torch

        return self.context + int(torch.cuda.max_memory_reserved(self.device))

    def full(self) -> bool:
        """Return whether the GPU has no free memory left, whatever process holds it."""
        free, total = device_free_bytes(self.device)
        return total > 0 and free < SPARE_BYTES


def limit_device(device: str, budget: int, dtype: str) -> DeviceLimit:
    """Limit torch's allocator as if the GPU had `budget` bytes. Raises OutOfMemory if the driver
    alone takes the budget, and EnvironmentFault if torch uses another GPU."""
    import torch

    context = context_bytes(device, dtype)
    check_same_card(device)
    if budget <= context:
        raise OutOfMemory(
            f"the driver alone takes {context >> 20} MiB of the GPU; the limit is "
            f"{budget >> 20} MiB",
            hint="Raise --memory",
        )
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (budget - context) / total), device)
    return DeviceLimit(device=device, bytes=budget, context=context)


def context_bytes(device: str, dtype: str) -> int:
    """Create this process's GPU context and return the memory that the driver takes for it."""
    pid, before, holders = os.getpid(), device_used_bytes(device), device_holders(device)
    reserved = warm_up(device, dtype)
    risen = device_used_bytes(device) - before - reserved
    listed = device_holders(device).get(pid, 0) - reserved
    if pid not in holders and 0 < listed < risen - SLACK_BYTES:
        return listed  # another process, such as a resident half, allocated meanwhile
    # In a container the driver may list this process id for a process of the host. The listed
    # figure is then wrong.
    if risen <= 0:
        return CONTEXT_BYTES
    return max(risen, listed) if listed <= risen + SLACK_BYTES else risen


def warm_up(device: str, dtype: str) -> int:
    """Load the libraries that nearly every model uses. Return what torch's allocator then holds.
    `dtype` is the name of a torch dtype, or anything else for 32 bit."""
    import torch

    named: Any = getattr(torch, dtype, None)
    kind = named if isinstance(named, torch.dtype) else torch.float32
    with torch.inference_mode():
        square = torch.zeros(WARM_EDGE, WARM_EDGE, device=device, dtype=kind)
        torch.mm(square, square)
        image = square.expand(1, 3, WARM_EDGE, WARM_EDGE)
        kernel = torch.zeros(8, 3, 14, 14, device=device, dtype=kind)
        torch.nn.functional.conv2d(image, kernel, stride=14)
        torch.cuda.synchronize(device)
    return int(torch.cuda.memory_reserved(device))


def check_same_card(device: str) -> None:
    """Raise EnvironmentFault if torch uses another GPU than the one that was queried."""
    import torch

    expected = device_uuid(device)
    used = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    # For a MIG device, torch may report the uuid of the device or of its card.
    if used is None or not expected.startswith("GPU-") or expected == f"GPU-{used}":
        return
    raise EnvironmentFault(
        f"torch uses GPU-{used}, but memory was measured on {expected}",
        hint=f"Set {VISIBLE}={expected}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeJob:
    """The GPU to test."""

    device: str
    """`cuda:N`."""


def warm(job_fields: JobFields) -> None:
    """Import torch before memory is counted."""
    import torch  # noqa: F401


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Test the job's GPU and send a note `gpu`. Raises torch's errors, and EnvironmentFault if
    torch uses another GPU than the driver reports."""
    import torch

    device = parse_job(ProbeJob, job_fields).device
    context = context_bytes(device, "float16")
    check_same_card(device)
    free, total = torch.cuda.mem_get_info(device)
    report.note(gpu={"free_bytes": free, "total_bytes": total, "context_bytes": context})
