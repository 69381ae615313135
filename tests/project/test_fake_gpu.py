"""The stand-in for the driver: what it tells is what the real library would, of each machine."""

import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.process import device
from stages.process.device import device_holders, device_used_bytes
from tests.support import gpus
from tests.support.fake_gpu import pynvml as fake
from tests.support.fake_gpu.state import MIB, Machine
from tests.support.fake_gpu.visible import visible
from tests.support.gpus import GIB

FIRST, SECOND = gpus.gpu(0).uuid, gpus.gpu(1).uuid
RESERVED = Machine(gpus=()).reserved_bytes
ALIKE = gpus.plain(gpus=tuple(gpus.gpu(number) for number in range(4)))
CHOICES = [
    "", "2,0", "0,-1,1", "1,7,0", "0,0", " 1 , 0", "1gpu2,2ampere", "none", "0,GPU-", "+1", "GPU-",
    FIRST[:12], f"{SECOND},{FIRST}", f"{FIRST},{FIRST}", f"{FIRST},0", "MIG-fa4e0000",
    "GPU-fa4e0002,GPU-fa4e0001", f"{FIRST},GPU-nothing,{SECOND}",
]  # fmt: skip


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that could have a context."""
    with subprocess.Popen(["sleep", "60"]) as running:
        yield running
        running.kill()


def driver(machine: Machine, folder: Path, patch: pytest.MonkeyPatch) -> ModuleType:
    """The library, ready to be asked."""
    gpus.see(machine, folder, patch)
    library = importlib.import_module("pynvml")
    library.nvmlInit()
    return library


def test_every_name_is_one_of_the_real_library() -> None:
    real = importlib.import_module("pynvml")
    names = [name for name in vars(fake) if name.startswith("nvml")]
    names += [error.__name__ for error in fake.BY_NUMBER.values()]
    assert not [name for name in names if not hasattr(real, name)]
    for number, error in fake.BY_NUMBER.items():
        assert type(real.NVMLError(number)).__name__ == error.__name__
        assert str(real.NVMLError(number)) == str(error()) == str(fake.NVMLError(number))
        assert type(fake.NVMLError(number)) is error


def test_what_a_process_holds_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: "subprocess.Popen[bytes]"
) -> None:
    library = driver(gpus.busy(GIB, pid=1), tmp_path, monkeypatch)
    handle = library.nvmlDeviceGetHandleByIndex(0)

    def holders() -> dict[int, int | None]:
        running = library.nvmlDeviceGetComputeRunningProcesses(handle)
        return {process.pid: process.usedGpuMemory for process in running}

    gpus.hold(tmp_path, sleeper.pid, 2 * GIB)
    assert holders() == {1: GIB, sleeper.pid: 2 * GIB}
    assert library.nvmlDeviceGetMemoryInfo(handle).used == RESERVED + 3 * GIB
    gpus.wsl2().write(tmp_path)
    assert holders() == {sleeper.pid: None}
    assert device.on_wsl()
    gpus.plain(own_pid_as=7).write(tmp_path)
    gpus.hold(tmp_path, os.getpid(), GIB)
    assert holders() == {7: GIB, 8: 2 * GIB}
    sleeper.kill()
    sleeper.wait()
    assert holders() == {7: GIB}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_cards_that_are_seen_are_those_that_torch_counts(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    uuids = [gpu.uuid for gpu in ALIKE.gpus]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", choice)
    message: list[Any] = torch.cuda._parse_visible_devices()
    ours = [uuids.index(slot.uuid) for slot in visible(ALIKE, os.environ)]
    if all(isinstance(entry, str) for entry in message):
        assert ours == torch.cuda._transform_uuid_to_ordinals(message, uuids)
    else:
        beyond = next((at for at, n in enumerate(message) if n >= len(uuids)), len(message))
        assert ours == message[:beyond]


CONTEXT, LAZY = Machine(gpus=()).context_bytes, Machine(gpus=()).lazy_bytes
SLACK = 4 * MIB
"""What a process takes of memory beside its tensors meanwhile."""
TELLING = """
import json, sys, torch
C = "cuda:0"
def tell(**more): print(json.dumps(more), flush=True); sys.stdin.readline()
sys.stdin.readline()
"""


@pytest.mark.slow
def test_what_a_process_holds_of_torch_is_seen_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.see(gpus.plain(), tmp_path, monkeypatch)
    script = """
    tell(available=torch.cuda.is_available(), count=torch.cuda.device_count(),
         held=torch.cuda.memory_allocated(), made=torch.cuda.is_initialized())
    torch.zeros(1, device=C)
    tell(made=torch.cuda.is_initialized())
    kept = torch.empty(100 << 20, dtype=torch.uint8, device=C)
    tell(first=int(kept[7]), held=torch.cuda.memory_allocated(C))
    del kept
    tell()
    torch.nn.Linear(2, 2).to(C)(torch.ones(1, 2, device=C))
    tell()
    torch.nn.Conv2d(1, 1, 1).to(C)(torch.ones(1, 1, 2, 2, device=C))
    tell()
    """
    with subprocess.Popen(
        [sys.executable, "-c", TELLING + textwrap.dedent(script)],
        cwd=gpus.ROOT,
        env=gpus.environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:

        def message() -> Any:
            assert running.stdin is not None and running.stdout is not None
            running.stdin.write("\n")
            running.stdin.flush()
            return json.loads(running.stdout.readline())

        assert message() == {"available": True, "count": 1, "held": 0, "made": False}
        assert device_used_bytes("cuda:0") == RESERVED
        assert message() == {"made": True}
        assert 0 <= device_used_bytes("cuda:0") - RESERVED - CONTEXT < SLACK
        found = message()
        assert found["first"] != 0, "memory that nobody wrote to is taken for zeros"
        assert 0 <= found["held"] - 100 * MIB < SLACK
        assert 0 <= device_holders("cuda:0")[running.pid] - CONTEXT - 100 * MIB < SLACK
        message()
        assert 0 <= device_used_bytes("cuda:0") - RESERVED - CONTEXT < SLACK
        for kinds in (1, 2):
            message()
            outside = RESERVED + CONTEXT + kinds * LAZY
            assert 0 <= device_used_bytes("cuda:0") - outside < SLACK
        assert gpus.contexts(tmp_path) == [running.pid]
    assert device_used_bytes("cuda:0") == RESERVED
    assert device_holders("cuda:0") == {}
