"""What the driver's part of a GPU is taken for, and which last words on a GPU mean its memory."""

import os
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, OutOfMemory, StageDied
from stages.process import budget, device_limit
from stages.process.device_limit import CONTEXT_BYTES, DeviceLimit, check_same_card, context_bytes
from stages.process.environment import child_environment
from stages.process.events import Broken
from stages.process.exit_diagnosis import Ending, fault_of_stage, out_of_memory
from stages.process.lock import lock_path
from tests.support import gpus

MIB = 1 << 20
CARD = "cuda:0"


OURS = os.getpid()
CONTEXTS: dict[str, tuple[tuple[int, int], list[dict[int, int]], int, int]] = {
    "what came is not the allocator's": ((1000, 1450), [{}, {}], 50, 400 * MIB),
    "another gives back meanwhile": ((1000, 1380), [{OURS: 400}, {OURS: 400}], 0, 400 * MIB),
    "another takes meanwhile": ((1000, 4600), [{1: 800}, {1: 4000, OURS: 400}], 0, 400 * MIB),
    "the number is another's": ((9000, 9400), [{OURS: 9000}, {OURS: 9000}], 0, 400 * MIB),
    "nothing is told": ((0, 0), [{}, {}], 0, CONTEXT_BYTES),
}
"""MiB in use before and after, what processes hold before and after, what torch's allocator holds;
and the bytes that are taken for the context."""


@pytest.mark.parametrize("case", CONTEXTS)
def test_the_context_is_what_this_process_added(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used, holders, reserved, wanted = CONTEXTS[case]
    uses, held = iter(used), iter([{pid: n * MIB for pid, n in each.items()} for each in holders])
    monkeypatch.setattr(device_limit, "device_used_bytes", lambda _: next(uses) * MIB)
    monkeypatch.setattr(device_limit, "device_holders", lambda _: next(held))
    monkeypatch.setattr(device_limit, "warm_up", lambda *_: reserved * MIB)
    assert context_bytes(CARD, "bfloat16") == wanted


DOUBTFUL = (
    "RuntimeError: GET was unable to find an engine to execute this computation",
    "RuntimeError: FIND was unable to find an engine to execute this computation",
    "RuntimeError: Unable to find a valid cuDNN algorithm to run convolution",
    "RuntimeError: no valid convolution algorithms available in CuDNN",
    "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "AcceleratorError: CUDA error: OS call failed or operation not supported on this OS",
)


@pytest.mark.parametrize("words", DOUBTFUL)
@pytest.mark.parametrize("share", [0.1, 0.8])
def test_doubtful_words_mean_memory_where_it_was_short(
    words: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = DeviceLimit(device=CARD, bytes=4 << 30, context=0)
    monkeypatch.setattr(DeviceLimit, "taken", lambda self: int(share * self.bytes))
    monkeypatch.setattr(DeviceLimit, "full", lambda self: False)
    monkeypatch.setattr(budget, "_device_limits", [limit])
    assert out_of_memory(RuntimeError(words.partition(": ")[2])) is (share > 0.5)
    told = Broken(**dict(zip(("type", "message"), words.split(": ", 1), strict=True)))
    peak = int(share * limit.bytes)
    ending = Ending(code=1, told=told, log=Path("log"), peak_bytes=peak, budget=limit.bytes)
    assert isinstance(fault_of_stage("encode", ending), OutOfMemory) is (share > 0.5)


def test_they_mean_it_too_where_others_have_the_card_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus.see(gpus.busy(8 * 1024 * MIB - 350 * MIB), tmp_path / "gpu", monkeypatch)
    limit = DeviceLimit(device=CARD, bytes=4 << 30, context=0)
    monkeypatch.setattr(DeviceLimit, "taken", lambda self: 0)
    monkeypatch.setattr(budget, "_device_limits", [limit])
    assert out_of_memory(RuntimeError(DOUBTFUL[0]))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (gpus.TOO_OLD, "Update the NVIDIA driver"),
        (gpus.NO_KERNEL, "no kernels"),
        ("CUDA error: unspecified launch failure", "dmesg"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", "nvidia-smi"),
    ],
)
def test_a_gpu_that_failed_is_told_with_what_to_do(words: str, advice: str) -> None:
    told = Broken(type="RuntimeError", message=words)
    fault = fault_of_stage("decode", Ending(code=1, told=told, log=Path("x.log")))
    assert isinstance(fault, StageDied) and advice in fault.hint


def test_stages_count_cards_as_the_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert child_environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_torch_that_computes_on_another_card_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    gpus.see(gpus.plain(), tmp_path / "gpu", monkeypatch)

    class Properties:
        uuid = gpus.gpu(1).uuid.removeprefix("GPU-")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    with pytest.raises(EnvironmentFault, match="torch computes on the GPU GPU-fa4e0001"):
        check_same_card(CARD)
    Properties.uuid = gpus.gpu(0).uuid.removeprefix("GPU-")
    check_same_card(CARD)


def test_segments_are_not_to_grow_under_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    gpus.see(gpus.plain(), tmp_path / "linux", monkeypatch)
    assert child_environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    gpus.see(gpus.wsl2(), tmp_path / "windows", monkeypatch)
    assert "PYTORCH_ALLOC_CONF" not in child_environment()
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    assert child_environment()["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    gpus.see(gpus.plain(), tmp_path / "linux", monkeypatch)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    assert "PYTORCH_ALLOC_CONF" not in child_environment()


def test_containers_of_one_host_can_share_the_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus.see(gpus.plain(), tmp_path / "gpu", monkeypatch)
    name = f"penstock-{gpus.gpu().uuid}.lock"
    assert lock_path(CARD) == Path("/tmp") / name
    monkeypatch.setenv("PENSTOCK_LOCKS", str(tmp_path))
    assert lock_path(CARD) == tmp_path / name
    monkeypatch.setenv("PENSTOCK_LOCKS", str(tmp_path / "none"))
    with pytest.raises(EnvironmentFault, match="which is no folder"):
        lock_path(CARD)
