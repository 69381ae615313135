"""Keeps a stage's process to the memory that it may take above its imports; knows no stage.

On a CPU the kernel limits what a process may write to and does not share: memory that is asked for
counts, whether it is used or not, and so do the stacks of threads. On a GPU torch's allocator does.
"""

import contextlib
import ctypes
import resource
import sys
from dataclasses import dataclass

from artifacts.errors import OutOfMemory
from stages.process.memory import Taken, device_free_bytes, device_holders, taken

STACK_BYTES = 2 << 20
"""Stack of a thread that is started under a limit, instead of 8 MiB: a library may start one for
each core before anybody can make room for them."""
THREAD_BYTES = STACK_BYTES + (256 << 10)
"""What a thread may take that does next to nothing: its stack and its part of the heap."""
CONTEXT_BYTES = 512 << 20
"""What the driver takes for a process, where it does not tell."""


@dataclass(slots=True)
class Limit:
    """What this process may take, once its imports are done."""

    bytes: int
    """Above the baseline."""
    baseline: Taken
    most_threads: int = 0

    def allow(self, now: Taken) -> None:
        """Make room for the stacks of threads that were started since: they are hardly used."""
        if now.threads <= self.most_threads:
            return
        self.most_threads = now.threads
        room = THREAD_BYTES * max(0, self.most_threads - self.baseline.threads)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        with contextlib.suppress(ValueError, OSError):  # above somebody else's hard limit
            resource.setrlimit(resource.RLIMIT_DATA, (self.baseline.data + self.bytes + room, hard))


def enforce(device: str, budget: int) -> Limit | None:
    """Keep this process to `budget` bytes of a device above what it takes now; None when it is the
    CPU's and 0. Raises OutOfMemory for a budget that cannot be kept to."""
    if device.startswith("cuda"):
        if budget and "torch" in sys.modules:
            _limit_device(device, budget)
        return None
    start_threads()
    if not budget:
        return None
    _shrink_stacks()
    limit = Limit(bytes=budget, baseline=taken())
    limit.allow(limit.baseline._replace(threads=limit.baseline.threads))
    return limit


def start_threads() -> None:
    """Have torch, if it was imported, start the threads that it computes on: under a limit, a
    library that gets no stack for one ends the process, or waits for ever."""
    if "torch" not in sys.modules:
        return
    import torch

    square = torch.ones(512, 512)
    torch.softmax(square @ square, -1)
    square = square.to(torch.bfloat16)
    torch.softmax(square @ square, -1)


def _shrink_stacks() -> None:
    """Give threads that are started from now on smaller stacks."""
    attributes = ctypes.create_string_buffer(64)  # pthread_attr_t
    c = ctypes.CDLL(None)
    if c.pthread_attr_init(attributes) == 0:
        c.pthread_attr_setstacksize(attributes, ctypes.c_size_t(STACK_BYTES))
        c.pthread_setattr_default_np(attributes)
        c.pthread_attr_destroy(attributes)


def _limit_device(device: str, budget: int) -> None:
    """Make torch's allocator behave as if the GPU were so small."""
    import os

    import torch

    before = device_free_bytes(device)[0]
    torch.cuda.init()
    torch.zeros(1, device=device)
    after, total = device_free_bytes(device)
    context = device_holders(device).get(os.getpid(), 0) or before - after or CONTEXT_BYTES
    if budget <= context:
        raise OutOfMemory(
            f"the driver alone takes {context >> 20} MiB of the GPU, and --memory allows "
            f"{budget >> 20} MiB",
            hint="Give it more",
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, (budget - context) / total), device)
