"""Chooses the GPUs on which one run computes, from `--gpus`.

GPUs share the work of a run only if they are equal, since a plan holds for one kind of GPU. They
are equal if the driver reports the same name and memory. Those that CUDA_VISIBLE_DEVICES hides do
not count. CUDA shows a process at most one MIG device, so further ones do not count either.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.wording import counted
from flows.core.console.lines import size
from flows.core.options.model import ALL_GPUS, GpuOptions
from stages.process.device import (
    USE_CPU_HINT,
    VISIBLE,
    device_count,
    device_free_bytes,
    device_model,
    device_name,
    device_uuid,
)

SLICE = "MIG-"
"""What the uuid of a MIG device begins with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that this process sees."""

    device: str
    """`cuda:N`."""
    model: str
    total_bytes: int

    @property
    def kind(self) -> tuple[int, str]:
        """Return what equal GPUs have in common, memory first."""
        return self.total_bytes, self.model

    def __str__(self) -> str:
        memory = f", {size(self.total_bytes)}" if self.total_bytes else ""
        return f"{self.device} ({self.model or 'unknown GPU'}{memory})"


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedDevices:
    """The devices of a run."""

    devices: tuple[str, ...]
    """`cpu`, or one `cuda:N` or more."""
    note: str = ""
    """What the user should know about the selection."""


def select_devices(given: str | None) -> SelectedDevices:
    """Return the devices for a value of `--gpus`; None: one device. Raises EnvironmentFault if
    there are no such GPUs, UsageError if they are not equal."""
    first = device_name()
    if first == "cpu":
        return _on_cpu(given)
    gpus = visible_gpus()
    if given is None or not gpus:
        equal = _largest_group(gpus)
        more = f"{counted(len(equal), 'equal GPU')} are here; --gpus all shares the work among them"
        return SelectedDevices(devices=(first,), note=more if len(equal) > 1 else "")
    if "," in given:
        return SelectedDevices(devices=_listed(gpus, given))
    equal = _largest_group(gpus)
    if given == ALL_GPUS:
        left = [gpu for gpu in gpus if gpu not in equal]
        note = f"--gpus all uses {_named(equal)}, and leaves out {_named(left)}" if left else ""
        return SelectedDevices(devices=tuple(gpu.device for gpu in equal), note=note)
    if int(given) > len(equal):
        raise EnvironmentFault(
            f"--gpus {given}: there are only {counted(len(equal), 'equal GPU')}: {_named(gpus)}",
            hint="Give fewer, or all",
        )
    return SelectedDevices(devices=tuple(gpu.device for gpu in equal[: int(given)]))


def gpu_count(given: str | None) -> int:
    """Return how many GPUs a value of `--gpus` names, whether or not they are here; `all`: those
    that are."""
    GpuOptions(gpus=given)  # raises UsageError
    if given is None:
        return 1
    if given == ALL_GPUS:
        return len(select_devices(given).devices)
    return int(given) if "," not in given else len(given.split(","))


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process and its children see, in their order."""
    gpus: list[Gpu] = []
    for number in range(device_count()):
        device = f"cuda:{number}"
        if gpus and device_uuid(device).startswith(SLICE):
            continue
        total = device_free_bytes(device)[1]
        gpus.append(Gpu(device=device, model=device_model(device), total_bytes=total))
    return gpus


def _on_cpu(given: str | None) -> SelectedDevices:
    if given in (None, ALL_GPUS):
        note = "--gpus all: there is no GPU here, so models run on the CPU"
        return SelectedDevices(devices=("cpu",), note=note if given else "")
    hidden = f" ({VISIBLE} is {os.environ[VISIBLE]!r})" if VISIBLE in os.environ else ""
    raise EnvironmentFault(
        f"--gpus {given}: there is no GPU here{hidden}",
        hint="Leave it out to use the CPU; `penstock doctor` says what the driver reports",
    )


def _largest_group(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the largest group of equal GPUs. Of groups of one size it is the one with more memory,
    then the one with the lowest number."""
    groups: dict[tuple[int, str], list[Gpu]] = {}
    for gpu in gpus:
        groups.setdefault(gpu.kind, []).append(gpu)
    return max(groups.values(), key=lambda group: (len(group), group[0].total_bytes), default=[])


def _listed(gpus: Sequence[Gpu], given: str) -> tuple[str, ...]:
    by_number = {gpu.device.partition(":")[2]: gpu for gpu in gpus}
    numbers = [str(int(part)) for part in given.split(",")]
    if missing := [number for number in numbers if number not in by_number]:
        raise EnvironmentFault(
            f"--gpus {given}: there is no GPU {missing[0]}; there are {_named(gpus)}",
            hint=f"Numbers are those of `nvidia-smi`, or places in {VISIBLE}; {USE_CPU_HINT}",
        )
    chosen = [by_number[number] for number in numbers]
    if unlike := [gpu for gpu in chosen if gpu.kind != chosen[0].kind]:
        raise UsageError(
            f"--gpus {given}: {chosen[0]} and {unlike[0]} are not equal",
            hint="Name equal GPUs, or start one run on each: runs on the same store share the work",
        )
    return tuple(gpu.device for gpu in chosen)


def _named(gpus: Sequence[Gpu]) -> str:
    return ", ".join(map(str, gpus))
