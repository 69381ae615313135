"""Machines with GPUs that are not there: what they are like, and how a test, or a command that it
starts, comes to see them.

`tests/support/fake_gpu` is what stands in for them; it says what each figure means.
"""

import functools
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from stages.process import device
from tests.support.fake_gpu import state
from tests.support.fake_gpu.state import Gpu, Machine, Slice

FAKES = Path(__file__).resolve().parent / "fake_gpu"
ROOT = FAKES.parent.parent
GIB = 1 << 30
DRIVER = "tests.support.fake_gpu.pynvml"
CHOICE = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
    "driver by downloading and installing a new version from the URL: "
    "http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to "
    "install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


def gpu(number: int = 0, **more: Any) -> Gpu:
    """An Ampere card of 8 GiB; `number` makes its uuid."""
    figures: dict[str, Any] = {
        "name": "NVIDIA GeForce RTX 3070",
        "uuid": f"GPU-fa4e{number:04x}-1111-2222-3333-444455556666",
        "total_bytes": 8 * GIB,
        "capability": (8, 6),
    }
    return Gpu(**{**figures, **more})


def part(number: int = 0, **more: Any) -> Slice:
    """A MIG slice of 5 GiB."""
    uuid = f"MIG-fa4e{number:04x}-7777-8888-9999-aaaabbbbcccc"
    return Slice(**{"uuid": uuid, "total_bytes": 5 * GIB, **more})


def plain(**more: Any) -> Machine:
    """One card whose driver tells all."""
    return Machine(**{"gpus": (gpu(),), **more})


def wsl2(**more: Any) -> Machine:
    """A card under Windows: what a process holds is not told."""
    return plain(wsl=True, **more)


def no_process_list(**more: Any) -> Machine:
    return plain(process_list=False, **more)


def no_memory_info(**more: Any) -> Machine:
    return plain(memory_info=False, **more)


def two_unlike_cards(**more: Any) -> Machine:
    """A small old card first on the bus, and a large one that CUDA counts first, as the faster."""
    old = gpu(0, name="NVIDIA GeForce GTX 1650", total_bytes=4 * GIB, capability=(7, 5))
    new = gpu(1, name="NVIDIA GeForce RTX 4090", total_bytes=24 * GIB, capability=(8, 9))
    return plain(gpus=(old, new), cuda_order=(1, 0), **more)


def mig(**more: Any) -> Machine:
    """A card that is cut in two slices."""
    name = "NVIDIA A100-SXM4-40GB"
    whole = gpu(name=name, total_bytes=40 * GIB, capability=(8, 0), mig=(part(0), part(1)))
    return plain(gpus=(whole,), **more)


def old_driver(**more: Any) -> Machine:
    """The driver answers, and is too old for torch."""
    return plain(driver_version="535.183.01", cuda_error=TOO_OLD, **more)


def no_kernels(**more: Any) -> Machine:
    """A card that this torch was not built for."""
    old = gpu(name="NVIDIA GeForce GTX 1080", capability=(6, 1))
    return plain(gpus=(old,), cuda_error=NO_KERNEL, **more)


def turing(**more: Any) -> Machine:
    """A card without bfloat16."""
    return plain(gpus=(gpu(name="Tesla T4", total_bytes=15 * GIB, capability=(7, 5)),), **more)


def busy(size: int = 5 * GIB, pid: int = 1, **more: Any) -> Machine:
    """A card that another process holds memory of."""
    return plain(gpus=(gpu(others={pid: size}),), **more)


MODES = {
    "wsl2": wsl2(),
    "no_process_list": no_process_list(),
    "no_memory_info": no_memory_info(),
    "two_unlike_cards": two_unlike_cards(),
    "mig": mig(),
    "turing": turing(),
    "busy": busy(),
}
"""Machines that are not like others, and can be worked on."""


def lose(folder: Path) -> None:
    """Have the cards fall off the bus."""
    (folder / "lost").touch()


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """What a command needs to see the machine that is written in a folder."""
    kept = {name: value for name, value in os.environ.items() if name not in CHOICE}
    paths = [str(FAKES), str(ROOT), kept.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), state.FOLDER: str(folder)}
    return {**kept, **ours, **extra}


def see(machine: Machine, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Have what this process asks of the driver, and of the kernel's name, answered for a machine;
    returns the folder, in which it may be changed. torch stays what it is."""
    machine.write(folder)
    for name in CHOICE:
        patch.delenv(name, raising=False)
    patch.setenv(state.FOLDER, str(folder))
    patch.delitem(sys.modules, DRIVER, raising=False)
    patch.setitem(sys.modules, "pynvml", import_module(DRIVER))
    patch.setattr(device, "OSRELEASE", folder / "osrelease")
    # What was found of another machine is not to be remembered.
    patch.setattr(device, "found", functools.cache(device.found.__wrapped__))
    return folder


def hold(folder: Path, pid: int, size: int, uuid: str = "") -> None:
    """Have a process that is there hold memory of a card; of the first, if none is named."""
    state.hold(pid, uuid or gpu().uuid, size, folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What a process asked of CUDA."""

    pid: int
    name: str
    """`context`, `set_per_process_memory_fraction`, `Stream`, `pin`."""
    arguments: tuple[str, ...]


def calls(folder: Path) -> list[Call]:
    """All that was asked, in its order."""
    path = folder / "calls.log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [_call(line.split(" ")) for line in lines]


def contexts(folder: Path) -> list[int]:
    """Ids of the processes that made a context, also of those that have ended, in their order."""
    return [call.pid for call in calls(folder) if call.name == "context"]


def _call(words: list[str]) -> Call:
    return Call(pid=int(words[0]), name=words[1], arguments=tuple(words[2:]))
