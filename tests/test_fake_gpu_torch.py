"""The stand-in for CUDA: torch in a command sees the cards of a folder, is refused what a card
would refuse, and what it holds is seen by the driver while it runs."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stages.process.device import device_holders, device_used_bytes
from tests.support import gpus
from tests.support.fake_gpu.state import MIB, Machine
from tests.support.gpus import ROOT

RESERVED, CONTEXT = Machine(gpus=()).reserved_bytes, Machine(gpus=()).context_bytes
LAZY = Machine(gpus=()).lazy_bytes
SLACK = 4 * MIB
"""What a process takes of memory beside its tensors meanwhile."""
BEGIN = """
import json, os, pickle, sys, torch
from tests.support import gpus
C = "cuda:0"
def tell(**more): print(json.dumps(more), flush=True); sys.stdin.readline()
def error(call, *given, **named):
    try: call(*given, **named)
    except Exception as raised: return [type(raised).__name__, str(raised)]
    return ["", ""]
"""


class Torch:
    """A process in which torch was imported, which tells something and waits to be answered."""

    def __init__(self, running: "subprocess.Popen[str]") -> None:
        assert running.stdin is not None
        assert running.stdout is not None
        self.pid = running.pid
        self._answers, self._told = running.stdin, running.stdout
        self._waits = False

    def told(self) -> dict[str, Any]:
        if self._waits:
            self._answers.write("\n")
            self._answers.flush()
        self._waits = True
        told: dict[str, Any] = json.loads(self._told.readline())
        return told


@contextmanager
def torch_in(folder: Path, script: str, **environment: str) -> Iterator[Torch]:
    """Run a script that tells things, on the machine of a folder."""
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(script)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    told = gpus.environment(folder, **environment)
    with subprocess.Popen(command, cwd=ROOT, env=told, **pipes) as running:
        try:
            yield Torch(running)
        finally:
            running.kill()


def test_what_a_process_holds_is_seen_while_it_runs(
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
    with torch_in(tmp_path, script) as process:
        assert process.told() == {"available": True, "count": 1, "held": 0, "made": False}
        assert device_used_bytes("cuda:0") == RESERVED
        assert process.told() == {"made": True}
        assert 0 <= device_used_bytes("cuda:0") - RESERVED - CONTEXT < SLACK
        told = process.told()
        assert told["first"] != 0, "memory that nobody wrote to is taken for zeros"
        assert 0 <= told["held"] - 100 * MIB < SLACK
        assert 0 <= device_holders("cuda:0")[process.pid] - CONTEXT - 100 * MIB < SLACK
        process.told()
        assert 0 <= device_used_bytes("cuda:0") - RESERVED - CONTEXT < SLACK
        for kinds in (1, 2):
            process.told()
            outside = RESERVED + CONTEXT + kinds * LAZY
            assert 0 <= device_used_bytes("cuda:0") - outside < SLACK
        assert gpus.contexts(tmp_path) == [process.pid]
    assert device_used_bytes("cuda:0") == RESERVED
    assert device_holders("cuda:0") == {}
