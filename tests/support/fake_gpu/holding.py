"""What this process has of a card that is not there: its context, its tensors and its limit.

Tensors "on the card" are in the host's memory, so all that the process's anonymous memory has grown
by since it made its context counts as held. Knows of torch only what it raises.
"""

import os
import threading
from collections.abc import Callable

import torch

from tests.support.fake_gpu import state
from tests.support.fake_gpu.state import Machine, anonymous_bytes, folder, read_machine
from tests.support.fake_gpu.visible import Slot, kernel_error, refusal, visible

LARGE = 1 << 20
"""From which size on others on the card are looked at before something is given."""
TAIL = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Device-side assertions were explicitly omitted for this error check; the error probably arose "
    "while initializing the DSA handlers."
)
LOST = "CUDA error: unknown error" + TAIL
"""cudaErrorUnknown is what a running program was seen to get when its card fell off the bus."""
LOST_BEFORE = (
    "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env "
    "variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero."
)
FORKED = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must "
    "use the 'spawn' start method"
)


class Holding:
    """Of one process; there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._slot: Slot | None = None
        self._machine: Machine | None = None
        self._base = 0
        self._lazy: set[tuple[str, object]] = set()
        self._expandable = False
        self.fraction = 1.0
        self.peak_bytes = 0
        """The most that was seen of `held_bytes`."""
        self.on_context: list[Callable[[], object]] = []
        """Called once there is a context."""

    @property
    def made(self) -> bool:
        """Whether this process has a context."""
        return self._pid == os.getpid()

    def slots(self) -> list[Slot]:
        """The devices that this process sees, without making a context."""
        machine = read_machine()
        if refusal(machine) or (not self.made and state.lost(folder())):
            return []
        return visible(machine, os.environ)

    def use(self, index: int = 0) -> Slot:
        """Make the context if there is none yet. Raises what CUDA would."""
        if state.lost(folder()):
            raise torch.AcceleratorError(LOST) if self.made else RuntimeError(LOST_BEFORE)
        with self._lock:
            if not self.made:
                self._make(index)
        slots = self.slots()
        if not 0 <= index < len(slots):
            raise torch.AcceleratorError("CUDA error: invalid device ordinal" + TAIL)
        return slots[index]

    def _make(self, index: int) -> None:
        if self._pid:
            raise RuntimeError(FORKED)
        machine, slots = read_machine(), self.slots()
        if why := refusal(machine):
            raise RuntimeError(why)
        if not slots:
            raise RuntimeError("No CUDA GPUs are available")
        self._machine, self._slot = machine, slots[index if index < len(slots) else 0]
        older, newer = map(os.environ.get, ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
        self._expandable = "expandable_segments:true" in (older or newer or "").lower()
        self._pid, self._base = os.getpid(), anonymous_bytes()
        self._note()
        state.log("context", self._slot.uuid)
        for call in self.on_context:
            call()

    def _note(self) -> None:
        assert self._machine is not None and self._slot is not None
        outside = self._machine.context_bytes + len(self._lazy) * self._machine.lazy_bytes
        state.hold(self._pid, self._slot.uuid, outside, folder(), self._base)

    def held_bytes(self) -> int:
        """What torch's allocator would have of the card."""
        held = max(0, anonymous_bytes() - self._base) if self.made else 0
        self.peak_bytes = max(self.peak_bytes, held)
        return held

    def free_bytes(self, slot: Slot) -> int:
        """What nobody holds of a card."""
        at = folder()
        ours = sum(size for uuid, size in state.held(at).values() if uuid == slot.uuid)
        used = read_machine().reserved_bytes + slot.others_bytes + ours
        return max(0, slot.total_bytes - used)

    def first_kernel(self, kind: str, dtype: object) -> None:
        """Load the kernels of a kind, which takes memory that no allocator knows of."""
        if self.made and (kind, dtype) not in self._lazy:
            self._lazy.add((kind, dtype))
            self._note()

    def ask(self, size: int, index: int = 0) -> None:
        """Whether so many bytes would be given now. Raises what torch would if not."""
        slot = self.use(index)
        assert self._machine is not None
        if error := kernel_error(self._machine):
            raise torch.AcceleratorError(error + TAIL)
        if self._machine.expandable_fails and self._expandable:
            raise RuntimeError("CUDA driver error: unknown error")
        over = self.held_bytes() + size > self.fraction * slot.total_bytes
        if over or (size >= LARGE and size > self.free_bytes(slot)):
            raise torch.OutOfMemoryError(self._short(size, slot, index))

    def look(self) -> None:
        """What is seen between two kernels: a card that is gone, or more held than is allowed."""
        if not self.made:
            return
        slot = self.use()
        if self.held_bytes() > self.fraction * slot.total_bytes:
            raise torch.OutOfMemoryError(self._short(LARGE, slot, 0))

    def _short(self, size: int, slot: Slot, index: int) -> str:
        held, total = self.held_bytes(), slot.total_bytes
        allowed = f"{_size(int(self.fraction * total))} allowed; " if self.fraction < 1 else ""
        outside = state.held(folder()).get(self._pid, ("", held))[1]
        return (
            f"CUDA out of memory. Tried to allocate {_size(size)}. GPU {index} has a total "
            f"capacity of {_size(total)} of which {_size(self.free_bytes(slot))} is free. "
            f"Including non-PyTorch memory, this process has {_size(outside)} memory in use. "
            f"{allowed}Of the allocated memory {_size(held)} is allocated by PyTorch, and 0 bytes "
            "is reserved by PyTorch but unallocated. If reserved but unallocated memory is large "
            "try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
        )


def _size(count: int) -> str:
    """As torch writes it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} bytes"


holding = Holding()
