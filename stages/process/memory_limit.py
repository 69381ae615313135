"""Limits the memory of a stage's process above what its imports took.

On a CPU the kernel limits private writable memory. Allocated memory counts whether it is used or
not, and so do the stacks of threads. On a GPU torch's allocator applies the limit.
"""

import contextlib
import ctypes
import math
import resource
import sys
from dataclasses import dataclass

from stages.process.device_limit import DeviceLimit, limit_device
from stages.process.memory import ProcessMemory, taken

STACK_BYTES = 2 << 20
"""Stack of a thread that is started under a limit, instead of 8 MiB: a library may start one for
each core before anybody can make room for them."""
THREAD_BYTES = STACK_BYTES + (256 << 10)
"""Bytes that a thread may take that does next to nothing: its stack and its part of the heap."""

AT_THE_LIMIT = 0.9
"""Part of its budget at which a process that was killed, crashed, or failed in some strange way,
died of its memory."""
SHORT = 0.5
"""Part of its budget from which on doubtful last words are taken for those of memory: what was
asked for, and not given, may have been large."""
SHORT_BYTES = 64 * THREAD_BYTES
"""The same, from the budget's end: threads for all cores are started in a moment, in which nobody
looks."""


def is_near(taken_bytes: int, budget: int) -> bool:
    """Return whether so much of a budget was taken that something may not have been given."""
    return taken_bytes >= min(SHORT * budget, budget - SHORT_BYTES)


@dataclass(slots=True)
class MemoryLimit:
    """The memory limit of this process, counted from the end of its imports."""

    bytes: int
    """Bytes above the baseline."""
    baseline: ProcessMemory
    max_threads: int = 0
    peak_bytes: int = 0
    """Bytes above the baseline that were asked for at once, at the most."""
    lifted: bool = False

    @property
    def short(self) -> bool:
        """Return whether memory has been so short that something may not have been given."""
        return is_near(self.peak_bytes, self.bytes)

    def look(self, now: ProcessMemory) -> None:
        """Make room for the stacks of threads that were started since: they are hardly used."""
        room = THREAD_BYTES * max(0, self.max_threads - self.baseline.threads)
        self.peak_bytes = max(self.peak_bytes, now.data - self.baseline.data - room)
        if self.lifted or now.threads <= self.max_threads:
            return
        self.max_threads = now.threads
        room = THREAD_BYTES * max(0, self.max_threads - self.baseline.threads)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        with contextlib.suppress(ValueError, OSError):  # above somebody else's hard limit
            resource.setrlimit(resource.RLIMIT_DATA, (self.baseline.data + self.bytes + room, hard))


_limits: list[MemoryLimit] = []
"""The limit of this process, if it has one."""
_device_limits: list[DeviceLimit] = []
"""The limit of this process on a GPU, if it has one."""


def look(now: ProcessMemory) -> bool:
    """Follow what this process takes, and return whether it was near its limit, if it has one. Near
    is near enough for what may have many reasons to have this one."""
    for limit in _limits:
        limit.look(now)
    return any(limit.short for limit in _limits)


def short() -> bool:
    """Return whether this process has a limit, and was near enough to it, or its GPU has no
    more."""
    if look(taken()):
        return True
    return any(is_near(limit.taken(), limit.bytes) or limit.full() for limit in _device_limits)


def at_the_limit() -> bool:
    """Return whether this process has a limit, and has had all that it allows."""
    return any(limit.peak_bytes >= AT_THE_LIMIT * limit.bytes for limit in _limits)


def room() -> float:
    """Return the bytes that this process would have had left when it took the most. Infinite
    without a limit."""
    look(taken())
    return min((limit.bytes - limit.peak_bytes for limit in _limits), default=math.inf)


def lift() -> None:
    """Let this process take what it needs to say what it died of."""
    for limit in _limits:
        limit.lifted = True
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def enforce(device: str, budget: int, dtype: str = "") -> None:
    """Keep this process to `budget` bytes of a device above what it takes now. 0 keeps it to
    nothing. On a GPU it is going to compute in `dtype`. Raises OutOfMemory for a budget that cannot
    be kept to, and EnvironmentFault for a GPU that is not the one that was meant."""
    if device.startswith("cuda"):
        if budget and "torch" in sys.modules:
            _device_limits.append(limit_device(device, budget, dtype))
        return
    start_threads()
    if budget:
        _shrink_stacks()
        limit = MemoryLimit(bytes=budget, baseline=taken())
        limit.look(limit.baseline)
        _limits.append(limit)


def start_threads() -> None:
    """Have torch, if it was imported, start the threads that it computes on. Under a limit, a
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
