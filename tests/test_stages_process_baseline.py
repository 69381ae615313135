"""What is seen of a GPU after a stage: whether it was given back, and whether it was full."""

from pathlib import Path

import pytest

from stages.process import baseline
from stages.process.baseline import given_back
from tests.support import gpus
from tests.support.fake_gpu.state import Machine

CARD = "cuda:0"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "SECONDS", 0.0)


def test_what_does_not_come_back_is_told_with_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.see(gpus.busy(1000 * MIB, pid=1), tmp_path / "gpu", monkeypatch)
    used, warnings = given_back(CARD, before=300 * MIB, peak=0)
    assert used >= 1300 * MIB
    [warning] = warnings
    assert "MiB of the GPU did not come back: process 1 hold memory" in warning
    assert given_back(CARD, before=used, peak=0) == (used, [])


def test_under_windows_a_full_gpu_is_told_because_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = 8000 * MIB
    gpus.see(gpus.plain(), tmp_path / "linux", monkeypatch)
    assert given_back(CARD, before=300 * MIB, peak=peak)[1] == []
    gpus.see(gpus.wsl2(), tmp_path / "windows", monkeypatch)
    [warning] = given_back(CARD, before=300 * MIB, peak=peak)[1]
    assert "host memory" in warning and "docs/gpu.md" in warning
    assert given_back(CARD, before=300 * MIB, peak=peak // 2)[1] == []


@pytest.mark.parametrize("machine", [gpus.no_memory_info(), gpus.no_process_list()])
def test_a_driver_that_tells_little_is_waited_for_not_at_all(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.see(machine, tmp_path / "gpu", monkeypatch)
    assert given_back(CARD, before=300 * MIB, peak=0)[1] == []
    assert given_back("cpu", before=0, peak=0) == (0, [])
