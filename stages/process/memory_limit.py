"""Limits the memory of a stage's process above what its imports took.

On a CPU the kernel limits private writable memory. It counts allocated memory whether it is used or
not, and thread stacks. On a GPU torch's allocator applies the limit.

A thread that gets no memory may wait forever and raise nothing. Python's own `Thread.start()` does
so when the new thread gets no memory before it reports that it runs. `DeadlockDetector` finds that
no thread makes progress any more. A thread that waits with the interpreter's lock stops even the
detector; a kernel timer covers that case.
"""

import contextlib
import ctypes
import math
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from stages.process.device_limit import DeviceLimit, limit_device
from stages.process.memory import ProcessMemory, process_memory

STACK_BYTES = 2 << 20
"""Stack of a thread that is started under a limit, instead of 8 MiB. A library may start one per
core before the limit is raised for them."""
THREAD_BYTES = STACK_BYTES + (256 << 10)
"""Memory of a nearly idle thread: its stack and its part of the heap."""

LIMIT_SHARE = 0.9
"""Share of the budget from which a killed, crashed or strangely failed process counts as out of
memory."""
SHORT_SHARE = 0.5
"""Share of the budget from which an ambiguous error message counts as out of memory. The failed
allocation may have been large."""
SHORT_BYTES = 64 * THREAD_BYTES
"""The same, as a distance from the budget. Threads for all cores may start between two samples."""


def is_near(taken_bytes: int, budget: int) -> bool:
    """Return whether so much of the budget is taken that an allocation may have failed."""
    return taken_bytes >= min(SHORT_SHARE * budget, budget - SHORT_BYTES)


@dataclass(slots=True)
class MemoryLimit:
    """The memory limit of this process, counted from the end of its imports."""

    bytes: int
    """Bytes above the baseline."""
    baseline: ProcessMemory
    max_threads: int = 0
    peak_bytes: int = 0
    """Peak of the bytes above the baseline."""
    lifted: bool = False

    @property
    def short(self) -> bool:
        """Return whether memory has been so short that an allocation may have failed."""
        return is_near(self.peak_bytes, self.bytes)

    def update(self, now: ProcessMemory) -> None:
        """Update the peak. Raise the limit by the stacks of new threads, which are hardly used."""
        room = THREAD_BYTES * max(0, self.max_threads - self.baseline.threads)
        self.peak_bytes = max(self.peak_bytes, now.data - self.baseline.data - room)
        if self.lifted or now.threads <= self.max_threads:
            return
        self.max_threads = now.threads
        room = THREAD_BYTES * max(0, self.max_threads - self.baseline.threads)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        with contextlib.suppress(ValueError, OSError):  # above an existing hard limit
            resource.setrlimit(resource.RLIMIT_DATA, (self.baseline.data + self.bytes + room, hard))


_limits: list[MemoryLimit] = []
"""The limit of this process, if it has one."""
_device_limits: list[DeviceLimit] = []
"""The limit of this process on a GPU, if it has one."""


def update(now: ProcessMemory) -> bool:
    """Update the peak of this process. Return whether it came near its limit, near enough to
    explain an ambiguous error."""
    for limit in _limits:
        limit.update(now)
    return any(limit.short for limit in _limits)


def memory_was_short() -> bool:
    """Return whether this process came near its limit, or its GPU has no free memory."""
    if update(process_memory()):
        return True
    return any(is_near(limit.taken(), limit.bytes) or limit.full() for limit in _device_limits)


def at_the_limit() -> bool:
    """Return whether this process has used up its limit."""
    return any(limit.peak_bytes >= LIMIT_SHARE * limit.bytes for limit in _limits)


def room() -> float:
    """Return the free bytes under the limit at the peak; infinite without a limit."""
    update(process_memory())
    return min((limit.bytes - limit.peak_bytes for limit in _limits), default=math.inf)


def lift() -> None:
    """Lift the limit, so that the process can report what it failed of."""
    for limit in _limits:
        limit.lifted = True
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def enforce(device: str, budget: int, dtype: str = "") -> None:
    """Limit this process to `budget` bytes of a device above its current use; 0: no limit. On a GPU
    the stage computes in `dtype`. The limit of an earlier stage of this process stays. Raises
    OutOfMemory if the budget is too small to enforce, and EnvironmentFault if torch uses another
    GPU."""
    if _limits or _device_limits:
        return
    if device.startswith("cuda"):
        if (torch := sys.modules.get("torch")) is not None:
            if budget:
                _device_limits.append(limit_device(device, budget, dtype))
            # Streams, events and recordings are of the current device, which is the first of all.
            torch.cuda.set_device(device)
        return
    start_threads()
    if budget:
        _shrink_stacks()
        limit = MemoryLimit(bytes=budget, baseline=process_memory())
        limit.update(limit.baseline)
        _limits.append(limit)


def start_threads() -> None:
    """Make torch start its compute threads, if it was imported. Under a limit, a library that gets
    no stack for a thread ends the process or waits forever."""
    if "torch" not in sys.modules:
        return
    import torch

    square = torch.ones(512, 512)
    torch.softmax(square @ square, -1)
    few = square[:64, :64].to(torch.bfloat16)  # a CPU without such numbers takes 0.2 s for all
    torch.softmax(few @ few, -1)


def _shrink_stacks() -> None:
    """Give threads that are started from now on smaller stacks."""
    attributes = ctypes.create_string_buffer(64)  # pthread_attr_t
    c = ctypes.CDLL(None)
    if c.pthread_attr_init(attributes) == 0:
        c.pthread_attr_setstacksize(attributes, ctypes.c_size_t(STACK_BYTES))
        c.pthread_setattr_default_np(attributes)
        c.pthread_attr_destroy(attributes)


STUCK_SECONDS = 30.0
"""How long no thread may make progress before the process counts as stuck."""
RECHECK_SECONDS = 5.0
"""Delay until the next check if a thread was waiting for something outside."""
IDLE_CPU_SECONDS = 0.05
"""Most CPU time in total that waiting threads use between two checks."""
SILENT_SECONDS = 600.0
"""How long one thread may hold the interpreter's lock."""
FUTEX = "202"
"""Number of the system call in which a thread waits for another thread. A sleeping thread uses
another call."""


class DeadlockDetector:
    """Checks at intervals whether any thread other than the calling one makes progress."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._cpu = 0.0

    def is_stuck(self) -> bool:
        """Return whether every other thread has only waited for other threads for STUCK_SECONDS."""
        now, cpu = time.monotonic(), time.process_time() - time.thread_time()
        if cpu - self._cpu > IDLE_CPU_SECONDS:
            self._since, self._cpu = now, cpu
            return False
        if now - self._since < STUCK_SECONDS:
            return False
        if all_wait():
            return True
        self._since = now - STUCK_SECONDS + RECHECK_SECONDS
        return False


def all_wait(tasks: Path = Path("/proc/self/task")) -> bool:
    """Return whether all threads but this one wait for a thread, and none for disk or network."""
    ours = str(threading.get_native_id())
    return all(_waits(task) for task in tasks.iterdir() if task.name != ours)


def _waits(task: Path) -> bool:
    try:
        return (task / "syscall").read_text().split()[0] == FUTEX
    except (OSError, IndexError):
        return True  # the thread has ended, or its state cannot be read


def rearm_alarm() -> None:
    """Restart the kernel timer that ends this process if it is not restarted in time."""
    signal.setitimer(signal.ITIMER_REAL, SILENT_SECONDS)
