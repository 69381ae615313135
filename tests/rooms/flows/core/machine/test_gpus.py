"""The GPUs that `--gpus` selects, on machines that are stood in for."""

from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from flows.core.machine.gpus import gpu_count, select_devices
from flows.core.options.model import GpuOptions
from tests.support import gpus
from tests.support.fake_gpu.state import Gpu, Machine

T4 = {"name": "Tesla T4", "total_bytes": 15 << 30, "capability": (7, 5)}
L4 = {"name": "NVIDIA L4", "total_bytes": 23 << 30, "capability": (8, 9)}


def machine(*cards: Gpu) -> Machine:
    return gpus.plain(gpus=cards)


def mixed() -> Machine:
    """An L4 between three T4."""
    kinds = (T4, L4, T4, T4)
    return machine(*(gpus.gpu(at, **kind) for at, kind in enumerate(kinds)))


def tied() -> Machine:
    """Two T4, then two L4."""
    return machine(*(gpus.gpu(at, **kind) for at, kind in enumerate((T4, T4, L4, L4))))


@pytest.mark.parametrize(
    ("here", "given", "devices"),
    [
        (mixed(), None, ["cuda:0"]),
        (mixed(), "all", ["cuda:0", "cuda:2", "cuda:3"]),
        (mixed(), "2", ["cuda:0", "cuda:2"]),
        (mixed(), "3,0", ["cuda:3", "cuda:0"]),
        (tied(), "all", ["cuda:2", "cuda:3"]),
        (gpus.plain(), "all", ["cuda:0"]),
        (Machine(gpus=()), "all", ["cpu"]),
        (gpus.no_memory_info(gpus=(gpus.gpu(0), gpus.gpu(1))), "all", ["cuda:0", "cuda:1"]),
    ],
)
def test_equal_gpus_are_selected(
    here: Machine,
    given: str | None,
    devices: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus.see(here, tmp_path / "gpu", monkeypatch)
    assert [*select_devices(given).devices] == devices


def test_what_is_left_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.see(mixed(), tmp_path / "gpu", monkeypatch)
    left = select_devices("all").note.partition("leaves out")[2]
    assert "cuda:1 (NVIDIA L4" in left and "T4" not in left
    assert "3 equal GPUs are here; --gpus all" in select_devices(None).note
    assert not select_devices("2").note


def test_only_visible_gpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.see(mixed(), tmp_path / "gpu", monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"2,{gpus.gpu(0).uuid}")
    assert select_devices("all").devices == ("cuda:0", "cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert select_devices("all").devices == ("cuda:0",)
    with pytest.raises(EnvironmentFault, match="only 1 equal GPU"):
        select_devices("2")


def test_of_divided_cards_one_slice_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.see(gpus.mig(), tmp_path / "gpu", monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{gpus.part(0).uuid},{gpus.part(1).uuid}")
    assert select_devices("all").devices == ("cuda:0",)


@pytest.mark.parametrize(
    ("here", "given", "error", "named"),
    [
        (mixed(), "0,1", UsageError, ["cuda:0 (Tesla T4", "cuda:1 (NVIDIA L4"]),
        (mixed(), "4", EnvironmentFault, ["only 3 equal GPUs", "cuda:1 (NVIDIA L4"]),
        (mixed(), "0,7", EnvironmentFault, ["no GPU 7", "cuda:3"]),
        (Machine(gpus=()), "2", EnvironmentFault, ["no GPU here"]),
        (Machine(gpus=()), "0,1", EnvironmentFault, ["no GPU here"]),
    ],
)
def test_gpus_that_cannot_share_are_refused(
    here: Machine,
    given: str,
    error: type[PenstockError],
    named: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus.see(here, tmp_path / "gpu", monkeypatch)
    with pytest.raises(error) as raised:
        select_devices(given)
    assert all(each in raised.value.message for each in named), raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize(
    "given", ["", "0", "two", "-1", "1.5", "0,0", "0,", ",", "all,0", "cuda:0"]
)
def test_other_values_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--gpus"):
        GpuOptions(gpus=given)


def test_a_plan_for_training_counts_gpus_that_are_not_here() -> None:
    assert [gpu_count(each) for each in (None, "8", "0,1,2")] == [1, 8, 3]
