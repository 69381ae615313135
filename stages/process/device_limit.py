"""Limits a process to its share of a GPU's memory.

The driver's own use for the process is measured, and torch's allocator is limited to the rest. CUDA
loads libraries and kernels on first use. So the driver's use is measured after a matrix product and
a convolution in the stage's dtype. Anything loaded later would exceed a limit that no longer
accounts for it.
"""

import os
from dataclasses import dataclass
from typing import Any

from artifacts.errors import EnvironmentFault, OutOfMemory
from stages.process.device import (
    device_free_bytes,
    device_holders,
    device_used_bytes,
    device_uuid,
)
from stages.process.nvml import VISIBLE

CONTEXT_BYTES = 512 << 20
"""Bytes that the driver takes for a process where it does not tell, and until it is measured: its
context and the kernels that are loaded, between 250 MiB on older cards and 600 on newer ones."""
SLACK_BYTES = 64 << 20
"""By how much two ways of measuring what a process holds may differ."""
SPARE_BYTES = 128 << 20
"""A GPU that has no more free gives nothing large, whatever a limit allows."""
WARM_EDGE = 256
"""Edge of the matrices, and of the picture, that have the libraries loaded."""


@dataclass(frozen=True, slots=True)
class DeviceLimit:
    """The GPU memory limit of this process."""

    device: str
    bytes: int
    """Bytes, with the driver's part."""
    context: int
    """Bytes of the driver's part."""

    def taken(self) -> int:
        """Return the most that this process has had, as far as torch knows."""
        import torch

        return self.context + int(torch.cuda.max_memory_reserved(self.device))

    def full(self) -> bool:
        """Return whether the GPU itself has nothing to give any more, because of others."""
        free, total = device_free_bytes(self.device)
        return total > 0 and free < SPARE_BYTES


def limit_device(device: str, budget: int, dtype: str) -> DeviceLimit:
    """Make torch's allocator behave as if the GPU were so small. Raises OutOfMemory for a budget
    that the driver takes alone, and EnvironmentFault when torch computes on another GPU."""
    import torch

    context = context_bytes(device, dtype)
    check_same_card(device)
    if budget <= context:
        raise OutOfMemory(
            f"the driver alone takes {context >> 20} MiB of the GPU, and {budget >> 20} MiB are "
            "allowed",
            hint="Give more --memory",
        )
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (budget - context) / total), device)
    return DeviceLimit(device=device, bytes=budget, context=context)


def context_bytes(device: str, dtype: str) -> int:
    """Make this process's context on a GPU, and say what the driver takes for it."""
    pid, before, there = os.getpid(), device_used_bytes(device), device_holders(device)
    reserved = warm_up(device, dtype)
    risen = device_used_bytes(device) - before - reserved
    listed = device_holders(device).get(pid, 0) - reserved
    if pid not in there and 0 < listed < risen - SLACK_BYTES:
        return listed  # others took something meanwhile, such as halves that stay
    # The driver may know this process by another number, which here is somebody else's: then what
    # it tells of that is not to be believed.
    if risen <= 0:
        return CONTEXT_BYTES
    return max(risen, listed) if listed <= risen + SLACK_BYTES else risen


def warm_up(device: str, dtype: str) -> int:
    """Have the libraries loaded that nearly every model uses. Returns what torch's allocator holds
    then. `dtype` is a torch dtype's name, or anything else for 32 bit."""
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
    """Raise EnvironmentFault when torch's GPU is not the one that the driver was asked about."""
    import torch

    expected = device_uuid(device)
    found = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    # Of a part of a card, torch may tell the part or the card.
    if found is None or not expected.startswith("GPU-") or expected == f"GPU-{found}":
        return
    raise EnvironmentFault(
        f"torch computes on the GPU GPU-{found}, and memory was counted of {expected}",
        hint=f"Set {VISIBLE}={expected}",
    )
