"""Which cards CUDA shows to a process, by the rules of CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER;
knows no torch.

The rules are those by which torch reads the variable when it counts the cards without CUDA.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.fake_gpu.state import Gpu, Machine, Slice

PREFIXES = ("GPU-", "MIG-")
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
    "installed a driver from http://www.nvidia.com/Download/index.aspx"
)
MISMATCH = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? Error 803: system has unsupported "
    "display driver / cuda driver combination"
)
OF_DRIVER = {
    "LibraryNotFound": NO_DRIVER,
    "DriverNotLoaded": NO_DRIVER,
    "LibRmVersionMismatch": MISMATCH,
}
"""What the driver's library fails with → what torch then says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """What CUDA counts as one device."""

    gpu: Gpu
    part: Slice | None = None

    @property
    def uuid(self) -> str:
        return self.part.uuid if self.part else self.gpu.uuid

    @property
    def total_bytes(self) -> int:
        return self.part.total_bytes if self.part else self.gpu.total_bytes

    @property
    def others_bytes(self) -> int:
        """What processes hold that are only written down."""
        return sum((self.part or self.gpu).others.values())


def visible(machine: Machine, environment: Mapping[str, str]) -> list[Slot]:
    """The devices that a process with such an environment sees, in the order of their numbers."""
    counted = list(machine.gpus)
    if machine.cuda_order and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        counted = [machine.gpus[place] for place in machine.cuda_order]
    message = environment.get("CUDA_VISIBLE_DEVICES")
    if message is None:
        chosen = list(map(_first, counted))
    elif message.startswith(PREFIXES):
        chosen = _named(message.split(","), message[:4], _all_slots(counted))
    else:
        chosen = _numbered(message.split(","), counted)
    return _one_part(chosen)


def refusal(machine: Machine) -> str:
    """Why CUDA cannot be used at all; empty if it can, though its first kernel may fail."""
    if machine.cuda_error and not kernel_error(machine):
        return machine.cuda_error
    return OF_DRIVER.get(machine.init_error, "")


def kernel_error(machine: Machine) -> str:
    """What every kernel fails with; empty if none does."""
    return machine.cuda_error if machine.cuda_error.startswith("CUDA error") else ""


def _first(gpu: Gpu) -> Slot:
    """What a card's number stands for: of a card in MIG mode, its first slice."""
    return Slot(gpu=gpu, part=gpu.mig[0] if gpu.mig else None)


def _all_slots(gpus: list[Gpu]) -> list[Slot]:
    slots = []
    for gpu in gpus:
        slots += [_first(gpu)] if not gpu.mig else []
        slots += [Slot(gpu=gpu, part=part) for part in gpu.mig]
    return slots


def _numbered(entries: list[str], counted: list[Gpu]) -> list[Slot]:
    """Ends at what is no number of a card; nothing where one is named twice."""
    found: list[int] = []
    for entry in entries:
        digits = re.match(r"[+-]?\d+", entry.strip())
        number = int(digits[0]) if digits else -1
        if number in found:
            return []
        if not 0 <= number < len(counted):
            break
        found.append(number)
    return [_first(counted[number]) for number in found]


def _named(entries: list[str], prefix: str, slots: list[Slot]) -> list[Slot]:
    """Ends at what is the beginning of no uuid, or of several; nothing where one is named
    twice."""
    found: list[Slot] = []
    for entry in entries:
        fitting = [slot for slot in slots if slot.uuid.startswith(entry)]
        if not entry.startswith(prefix) or len(fitting) != 1:
            break
        if fitting[0] in found:
            return []
        found += fitting
    return found


def _one_part(slots: list[Slot]) -> list[Slot]:
    """CUDA shows no process more than one slice."""
    parts = [slot for slot in slots if slot.part is not None]
    return [slot for slot in slots if slot.part is None or slot is parts[0]]
