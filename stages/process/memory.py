"""Reads a process's memory from the kernel, and samples it over time. Makes no CUDA context."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from stages.process.device import device_holders, device_used_bytes
from stages.process.device_limit import CONTEXT_BYTES
from stages.process.events import MemorySample

PEAK_INTERVAL = 0.05
"""Seconds between samples for the peak; short, because activations live briefly."""
TIMELINE_INTERVAL = 0.5
"""Seconds between points of the timeline (2 Hz)."""
MAX_POINTS = 7200
"""Most points of a timeline: one hour. When it is full, every second old point is dropped."""
RISE_BYTES = 16 << 20
RISE_SHARE = 0.01
"""A peak that rises by RISE_BYTES, or by this share if that is less, is reported at once. A process
that is killed at its peak can report nothing later, and its imports alone may take half a GB."""


class ProcessMemory(NamedTuple):
    """The host memory of a process."""

    anonymous: int = 0
    """Resident bytes without a backing file. The kernel's high-water mark includes pages of
    files."""
    data: int = 0
    """Private writable bytes, touched or not: what RLIMIT_DATA limits."""
    threads: int = 0


FIELDS = {b"RssAnon": 0, b"VmData": 1, b"Threads": 2}
"""Line of the kernel's process status → its position in ProcessMemory."""


def process_memory(pid: int | str = "self") -> ProcessMemory:
    """Return the host memory of a process; zeros if there is no such process."""
    numbers = [0, 0, 0]
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                name, _, value = line.partition(b":")
                if name in FIELDS:
                    number = int(value.split()[0])
                    numbers[FIELDS[name]] = number if name == b"Threads" else number * 1024
    except OSError:
        pass
    return ProcessMemory(*numbers)


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return the resident bytes without a backing file."""
    return process_memory(pid).anonymous


class Sampler:
    """Samples the memory of this process from a thread; a context manager.

    `on_point` is called at each point of the timeline, and at once when a peak rises. `on_sample`
    is called at every sample. The device figure is the use of all processes, or with `own` that of
    this process.
    """

    def __init__(
        self,
        device: str,
        on_point: Callable[[MemorySample], None] | None = None,
        on_sample: Callable[[ProcessMemory], None] | None = None,
        *,
        own: bool = False,
        started: float | None = None,
    ) -> None:
        """`started` is the time from which seconds count, by `time.monotonic`; None: now."""
        self._device = device
        self._on_point = on_point
        self._on_sample = on_sample
        self._own = own
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory", daemon=True)
        self._started = time.monotonic() if started is None else started
        self._next_point = 0.0
        self._reported = (0, 0)
        self.peak_host_bytes = 0
        """Peak of anonymous resident memory."""
        self.peak_device_bytes = 0
        """Peak of memory in use on the device."""
        self.timeline: list[tuple[float, int, int]] = []
        """(seconds since start, anonymous host bytes, device bytes)."""

    def __enter__(self) -> "Sampler":
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._next_point = 0.0
        self.sample()

    def _follow(self) -> None:
        while not self._stop.wait(PEAK_INTERVAL):
            with contextlib.suppress(MemoryError):  # keep reporting when none is left
                self.sample()

    def sample(self) -> None:
        now, device = process_memory(), self._device_bytes()
        passed = round(time.monotonic() - self._started, 2)
        self.peak_host_bytes = max(self.peak_host_bytes, now.anonymous)
        self.peak_device_bytes = max(self.peak_device_bytes, device)
        if self._on_sample is not None:
            self._on_sample(now)
        peaks = (self.peak_host_bytes, self.peak_device_bytes)
        due = passed >= self._next_point
        if due:
            self._next_point = passed + TIMELINE_INTERVAL
            add_point(self.timeline, (passed, now.anonymous, device))
        pairs = zip(peaks, self._reported, strict=True)
        rose = any(new - old > min(RISE_BYTES, old * RISE_SHARE) for new, old in pairs)
        if self._on_point is not None and (due or rose):
            self._reported = peaks
            with contextlib.suppress(OSError):  # the parent is gone
                self._on_point(
                    MemorySample(
                        device=self._device,
                        seconds=passed,
                        host_bytes=now.anonymous,
                        device_bytes=device,
                        peak_host_bytes=peaks[0],
                        peak_device_bytes=peaks[1],
                    )
                )

    def _device_bytes(self) -> int:
        if self._own:
            listed = device_holders(self._device).get(os.getpid(), 0)
        else:
            listed = device_used_bytes(self._device)
        return listed or _own_bytes(self._device)


def add_point(timeline: list[Any], point: Any) -> None:
    """Add a point to a timeline, whose length stays bounded."""
    timeline.append(point)
    if len(timeline) > MAX_POINTS:
        del timeline[1:MAX_POINTS:2]


def _own_bytes(device: str) -> int:
    """Return the GPU memory of this process if the driver does not report it; 0: no context."""
    torch = sys.modules.get("torch")
    cuda: Any = getattr(torch, "cuda", None)  # missing while torch is being imported
    if not device.startswith("cuda") or not hasattr(cuda, "memory_reserved"):
        return 0
    return CONTEXT_BYTES + int(cuda.memory_reserved(device)) if cuda.is_initialized() else 0
