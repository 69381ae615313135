"""Memory of a process and of a device, read from the kernel and the driver; makes no CUDA
context."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

PEAK_INTERVAL = 0.05
"""Seconds between looks for the peak: short, because activations come and go."""
TIMELINE_INTERVAL = 0.5
"""Seconds between points of the time line (2 Hz)."""
TELL_INTERVAL = 2.0
"""Seconds between the times that somebody is told of the peak."""


def anonymous_bytes(pid: int | str = "self") -> int:
    """Resident memory that no file backs. The kernel's high-water mark counts file pages as
    well."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def device_name() -> str:
    """`cuda:0` when the driver shows a GPU, else `cpu`; asks NVML, so that no CUDA context is
    made."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "cpu"
    return "cuda:0" if _handle("cuda:0") is not None else "cpu"


def device_used_bytes(device: str) -> int:
    """Memory in use on a device by everyone; 0 for the CPU or when the driver does not tell."""
    handle = _handle(device)
    if handle is None:
        return 0
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def device_holders(device: str) -> dict[int, int]:
    """Process id → bytes it holds on the device, as far as the driver tells."""
    handle = _handle(device)
    if handle is None:
        return {}
    import pynvml

    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return {process.pid: int(process.usedGpuMemory or 0) for process in running}


def device_uuid(device: str) -> str:
    """A name for the physical device that all processes agree on, for locks and records."""
    handle = _handle(device)
    if handle is None:
        return device
    import pynvml

    return str(pynvml.nvmlDeviceGetUUID(handle))


def device_capability(device: str) -> tuple[int, int]:
    """Compute capability of a GPU, such as (8, 6); (0, 0) for the CPU."""
    handle = _handle(device)
    if handle is None:
        return 0, 0
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return int(major), int(minor)


def _handle(device: str) -> Any:
    if not device.startswith("cuda"):
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        number = int(device.partition(":")[2] or 0)
        visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
        if visible and visible[number].startswith("GPU-"):
            return pynvml.nvmlDeviceGetHandleByUUID(visible[number])
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible[number]) if visible else number)
    except (ImportError, IndexError, ValueError):
        return None
    except Exception as error:  # NVMLError, named only once the library is there
        if type(error).__name__.startswith("NVMLError"):
            return None
        raise


class Sampler:
    """Follows the memory of this process from a thread; a context manager. `tell(host, device)` is
    given the peaks so far, in bytes, now and then."""

    def __init__(self, device: str, tell: Callable[[int, int], None] | None = None) -> None:
        self._device = device
        self._tell = tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory", daemon=True)
        self._started = time.monotonic()
        self.peak_host_bytes = 0
        """Highest anonymous resident memory seen."""
        self.peak_device_bytes = 0
        """Highest memory in use on the device, by everyone."""
        self.timeline: list[tuple[float, int, int]] = []
        """(seconds since start, anonymous host bytes, device bytes)."""

    def __enter__(self) -> "Sampler":
        self._look(due=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look(due=True)

    def _follow(self) -> None:
        next_point = next_word = 0.0
        while not self._stop.wait(PEAK_INTERVAL):
            passed = time.monotonic() - self._started
            due = passed >= next_point
            self._look(due)
            if due:
                next_point = passed + TIMELINE_INTERVAL
            if self._tell is not None and passed >= next_word:
                next_word = passed + TELL_INTERVAL
                with contextlib.suppress(OSError):  # nobody listens any more
                    self._tell(self.peak_host_bytes, self.peak_device_bytes)

    def _look(self, due: bool) -> None:
        host, device = anonymous_bytes(), device_used_bytes(self._device)
        self.peak_host_bytes = max(self.peak_host_bytes, host)
        self.peak_device_bytes = max(self.peak_device_bytes, device)
        if due:
            self.timeline.append((round(time.monotonic() - self._started, 2), host, device))
