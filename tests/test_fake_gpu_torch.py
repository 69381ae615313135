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
from stages.process.exit_diagnosis import memory_words
from tests.support import gpus
from tests.support.fake_gpu.state import MIB, Machine
from tests.support.gpus import GIB, ROOT

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


def test_torch_keeps_to_its_fraction_and_to_the_card(tmp_path: Path) -> None:
    script = """
    kinds = torch.device(C), torch.device("cpu"), torch.device("meta")
    tell(devices=[isinstance(kind, torch.device) for kind in kinds],
         copied=str(pickle.loads(pickle.dumps(kinds[1]))))
    tell(card=torch.cuda.get_device_properties(0).__dict__, free=torch.cuda.mem_get_info(C)[0])
    limit = torch.cuda.set_per_process_memory_fraction
    tell(errors=[error(limit, 1, C), error(limit, 1.5, C), error(limit, 0.5, "cuda"),
                 error(limit, 0.5, "cpu"), error(torch.cuda.get_device_properties, 3),
                 error(torch.zeros, 1, device="cuda:1")])
    tell(large=error(torch.empty, 4 << 30, dtype=torch.uint8, device=C))
    limit(0.05, C)
    torch.empty(1, device="cpu", pin_memory=True)
    kept = []
    more = lambda: kept.append(torch.ones(64 << 20, dtype=torch.uint8, device=C))
    tell(many=[error(more) for _ in range(8)], moved=error(torch.ones(1).to, C))
    whole = torch.ones(1 << 20).expand(16, -1).contiguous()
    tell(computed=error(torch.nn.Identity(), whole))
    """
    gpus.busy(5 * GIB).write(tmp_path)
    with torch_in(tmp_path, script) as process:
        assert process.told() == {"devices": [True, True, True], "copied": "cpu"}
        told = process.told()
        assert told["card"]["uuid"] == gpus.gpu().uuid.removeprefix("GPU-")
        assert told["card"]["total_memory"] == 8 * GIB
        assert 0 <= 3 * GIB - RESERVED - CONTEXT - told["free"] < SLACK
        kinds = ["TypeError", "ValueError", "ValueError", "ValueError", "AssertionError"]
        assert [kind for kind, _ in process.told()["errors"]] == [*kinds, "AcceleratorError"]
        kind, words = process.told()["large"]
        assert kind == "OutOfMemoryError"
        assert words.startswith("CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has")
        told = process.told()
        refused = [bool(kind) for kind, _ in told["many"]]
        assert refused[0] is False
        assert refused == sorted(refused), "what was once refused is given later"
        assert sum(refused) == 2, "6 tensors of 64 MiB are less than 5 % of 8 GiB"
        assert memory_words(RuntimeError(told["many"][-1][1])) is not None
        assert "409.60 MiB allowed" in told["many"][-1][1]
        assert told["moved"][0] == ""
        assert process.told()["computed"][0] == "OutOfMemoryError"
    names = [call.name for call in gpus.calls(tmp_path)]
    assert names == ["context", "set_per_process_memory_fraction", "pin"]


def test_each_fault_reads_as_the_real_one(tmp_path: Path) -> None:
    script = """
    import warnings
    folder = gpus.Path(os.environ["FAKE_GPU"])
    first = lambda: torch.zeros(1, device=C)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tell(available=torch.cuda.is_available(), said=str(told[0].message), error=error(first))
    gpus.lose(gpus.plain().write(folder))
    tell(error=error(first))
    (folder / "lost").unlink()
    gpus.plain(gpus=()).write(folder)
    tell(error=error(first))
    gpus.no_kernels().write(folder)
    tell(error=error(first), capability=torch.cuda.get_device_capability(),
         emulated=[torch.cuda.is_bf16_supported(), torch.cuda.is_bf16_supported(False)])
    gpus.lose(folder)
    tell(error=error(first), computed=error(torch.nn.Identity(), torch.ones(1)))
    """
    gpus.old_driver().write(tmp_path)
    with torch_in(tmp_path, script) as process:
        told = process.told()
        assert told["available"] is False
        assert told["error"] == ["RuntimeError", gpus.TOO_OLD]
        assert told["said"].endswith(gpus.TOO_OLD)
        kind, words = process.told()["error"]
        assert (kind, words[:18]) == ("RuntimeError", "CUDA unknown error")
        assert process.told()["error"] == ["RuntimeError", "No CUDA GPUs are available"]
        assert gpus.contexts(tmp_path) == []
        told = process.told()
        assert told["error"][0] == "AcceleratorError"
        assert told["error"][1].startswith(gpus.NO_KERNEL)
        assert told["capability"] == [6, 1]
        assert told["emulated"] == [True, False]
        told = process.told()
        assert told["error"] == told["computed"]
        assert told["error"][1].startswith("CUDA error: unknown error")
    assert gpus.contexts(tmp_path) == [process.pid]


@pytest.mark.parametrize(
    ("environment", "fails"),
    [
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "", "PYTORCH_ALLOC_CONF": ""}, False),
    ],
)
def test_expandable_segments_fail_where_they_do(
    environment: dict[str, str], fails: bool, tmp_path: Path
) -> None:
    gpus.wsl2(expandable_fails=True).write(tmp_path)
    script = """
    from stages.process.device import on_wsl
    tell(error=error(torch.zeros, 1, device=C), wsl=on_wsl())
    """
    with torch_in(tmp_path, script, **environment) as process:
        told = process.told()
    assert told["wsl"]
    assert told["error"] == (
        ["RuntimeError", "CUDA driver error: unknown error"] if fails else ["", ""]
    )
