"""What the driver is asked, what its part of a GPU is taken for, last words about memory, and GPUs
that cannot be used."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from artifacts.errors import EnvironmentFault, OutOfMemory, StageDied
from flows.commands.doctor.doctor_command import _device
from stages.process import device_limit, memory_limit, stage_process
from stages.process.child_environment import child_environment
from stages.process.device import (
    AMD,
    INTEGRATED,
    INTEL,
    NVIDIA,
    device_capability,
    device_free_bytes,
    device_holders,
    device_name,
    device_used_bytes,
    device_uuid,
    driver_version,
    hidden,
    lock_path,
    on_wsl,
    other_devices,
    unused_gpu,
)
from stages.process.device_limit import CONTEXT_BYTES, DeviceLimit, check_same_card, context_bytes
from stages.process.events import StageError
from stages.process.exit_diagnosis import ProcessExit, fault_of_stage, out_of_memory
from stages.process.stage_process import wait_for_release
from tests.support import gpus
from tests.support.fake_gpu.state import Machine

Patch = pytest.MonkeyPatch
Seen = Callable[..., Path]
MIB, GIB = 1 << 20, 1 << 30
CARD = "cuda:0"


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: Patch) -> Seen:
    """Sees a machine from now on, and of its cards those that are named."""

    def see(machine: Machine, named: str | None = None) -> Path:
        folder = gpus.see(machine, tmp_path / "gpu", monkeypatch)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        return folder

    return see


def test_a_driver_that_tells_all_is_believed(seen: Seen) -> None:
    folder = seen(gpus.plain())
    free, total = device_free_bytes(CARD)
    assert device_name() == CARD
    assert total == 8 * GIB and 0 < free < total
    assert device_used_bytes(CARD) == total - free
    assert device_capability(CARD) == (8, 6)
    assert device_uuid(CARD) == gpus.gpu().uuid and driver_version(CARD)
    assert gpus.contexts(folder) == [] and not on_wsl()


@pytest.mark.parametrize("make", [gpus.no_process_list, gpus.no_memory_info, gpus.wsl2])
def test_what_the_driver_does_not_tell_is_unknown_and_not_waited_for(
    seen: Seen, make: Callable[[], Machine]
) -> None:
    seen(machine := make())
    assert device_name() == CARD
    assert device_holders(CARD) == {}
    known = machine.memory_info
    assert (device_free_bytes(CARD) != (0, 0)) is known
    assert (device_used_bytes(CARD) > 0) is known
    assert on_wsl() is machine.wsl
    assert wait_for_release(CARD, before=300 * MIB, peak=0)[1] == []
    seen(gpus.busy(wsl=True))
    assert device_holders(CARD) == {1: 0}


def test_a_card_that_fell_off_the_bus_is_unknown_where_it_was_known(seen: Seen) -> None:
    folder = seen(gpus.plain())
    assert device_used_bytes(CARD) > 0
    gpus.lose(folder)
    assert device_used_bytes(CARD) == 0
    assert device_free_bytes(CARD) == (0, 0)
    assert device_holders(CARD) == {} and device_uuid(CARD) == CARD
    gpus.lose(seen(gpus.plain()))  # before it is looked for
    with pytest.raises(EnvironmentFault, match="cannot reach GPU 0"):
        device_name()


def test_cards_are_counted_by_place_on_the_bus(seen: Seen) -> None:
    seen(gpus.two_unlike_cards())
    assert device_free_bytes(CARD)[1] == 4 * GIB
    seen(gpus.two_unlike_cards(), "1")
    assert device_free_bytes(CARD)[1] == 24 * GIB
    seen(gpus.two_unlike_cards(), "1,0")
    assert device_capability(CARD) == (8, 9) and device_capability("cuda:1") == (7, 5)


def test_other_cards_are_known_until_one_is_chosen(seen: Seen, monkeypatch: Patch) -> None:
    seen(gpus.two_unlike_cards())
    assert other_devices(CARD) == [(1, "NVIDIA GeForce RTX 4090", 24 * GIB)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert other_devices(CARD) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    seen(gpus.mig())
    assert other_devices(CARD) == [], "a part is of its card"


@pytest.mark.parametrize("named", ["GPU-fa4e0001", "GPU-fa4e0001-1111", gpus.gpu(1).uuid])
def test_a_uuid_is_known_by_its_head(seen: Seen, named: str) -> None:
    seen(gpus.two_unlike_cards(), named)
    assert device_name() == CARD and device_uuid(CARD) == gpus.gpu(1).uuid


@pytest.mark.parametrize(
    ("named", "part"),
    [(None, 0), ("0", 0), (gpus.part(0).uuid, 0), ("GPU-fa4e0000", 0), (gpus.part(1).uuid, 1)],
)
def test_one_part_of_a_card(seen: Seen, named: str | None, part: int) -> None:
    seen(gpus.mig(), named)
    assert device_name() == CARD and device_uuid(CARD) == gpus.part(part).uuid
    assert device_free_bytes(CARD)[1] == 5 * GIB


@pytest.mark.parametrize(
    "named", ["7", "GPU-0000", "MIG-0000", "GPU-fa4e", "gpu-fa4e0001", "first", "1 0"]
)
def test_an_unknown_name_is_an_error(seen: Seen, named: str) -> None:
    seen(gpus.two_unlike_cards(), named)
    with pytest.raises(EnvironmentFault) as caught:
        device_name()
    assert named in caught.value.message and gpus.gpu(1).uuid in caught.value.message
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.hint


@pytest.mark.parametrize("named", ["", "-1", "-1,0", "NoDevFiles"])
def test_all_cards_can_be_hidden(seen: Seen, named: str) -> None:
    seen(gpus.plain(), named)
    assert device_name() == "cpu" and hidden()
    assert wait_for_release("cpu", before=0, peak=0) == (0, [])


@pytest.mark.parametrize("why", ["LibraryNotFound", "DriverNotLoaded"])
def test_without_a_driver_the_cpu_is_used(seen: Seen, why: str) -> None:
    seen(gpus.plain(init_error=why))
    assert device_name() == "cpu" and not hidden()
    seen(gpus.plain(init_error=why), "0")
    with pytest.raises(EnvironmentFault, match=r"unknown GPU 0 \(no NVIDIA driver responds"):
        device_name()


def test_a_driver_out_of_order_is_no_missing_driver(seen: Seen) -> None:
    seen(gpus.plain(init_error="LibRmVersionMismatch"))
    with pytest.raises(EnvironmentFault, match="the NVIDIA driver does not respond") as caught:
        device_name()
    assert "restart" in caught.value.hint


@pytest.fixture(autouse=True)
def at_once(monkeypatch: Patch) -> None:
    monkeypatch.setattr(stage_process, "SECONDS", 0.0)


def test_what_does_not_come_back_is_told_with_who_holds_it(seen: Seen) -> None:
    seen(gpus.busy(1000 * MIB, pid=1))
    used, warnings = wait_for_release(CARD, before=300 * MIB, peak=0)
    assert used >= 1300 * MIB
    [warning] = warnings
    assert "MiB, held by process 1" in warning
    assert wait_for_release(CARD, before=used, peak=0) == (used, [])


def test_under_windows_a_full_gpu_is_told_because_nothing_fails(seen: Seen) -> None:
    peak = 8000 * MIB
    seen(gpus.plain())
    assert wait_for_release(CARD, before=300 * MIB, peak=peak)[1] == []
    seen(gpus.wsl2())
    [warning] = wait_for_release(CARD, before=300 * MIB, peak=peak)[1]
    assert "host memory" in warning and "docs/gpu.md" in warning
    assert wait_for_release(CARD, before=300 * MIB, peak=peak // 2)[1] == []


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
def test_the_context_is_what_this_process_added(case: str, monkeypatch: Patch) -> None:
    used, holders, reserved, expected = CONTEXTS[case]
    uses, held = iter(used), iter([{pid: n * MIB for pid, n in each.items()} for each in holders])
    monkeypatch.setattr(device_limit, "device_used_bytes", lambda _: next(uses) * MIB)
    monkeypatch.setattr(device_limit, "device_holders", lambda _: next(held))
    monkeypatch.setattr(device_limit, "warm_up", lambda *_: reserved * MIB)
    assert context_bytes(CARD, "bfloat16") == expected


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
def test_doubtful_words_mean_memory(words: str, share: float, monkeypatch: Patch) -> None:
    limit = DeviceLimit(device=CARD, bytes=4 << 30, context=0)
    monkeypatch.setattr(DeviceLimit, "taken", lambda self: int(share * self.bytes))
    monkeypatch.setattr(DeviceLimit, "full", lambda self: False)
    monkeypatch.setattr(memory_limit, "_device_limits", [limit])
    assert out_of_memory(RuntimeError(words.partition(": ")[2])) is (share > 0.5)
    message = StageError(**dict(zip(("type", "message"), words.split(": ", 1), strict=True)))
    peak, of = int(share * limit.bytes), {"error_event": message, "log": Path("log")}
    ending = ProcessExit(code=1, peak_bytes=peak, budget=limit.bytes, **of)  # type: ignore[arg-type]
    assert isinstance(fault_of_stage("encode", ending), OutOfMemory) is (share > 0.5)


def test_they_mean_it_on_a_full_card(seen: Seen, monkeypatch: Patch) -> None:
    seen(gpus.busy(8 * 1024 * MIB - 350 * MIB))
    limit = DeviceLimit(device=CARD, bytes=4 << 30, context=0)
    monkeypatch.setattr(DeviceLimit, "taken", lambda self: 0)
    monkeypatch.setattr(memory_limit, "_device_limits", [limit])
    assert out_of_memory(RuntimeError(DOUBTFUL[0]))


def test_a_setting_of_a_library_is_named_if_it_could_have_failed_the_import(
    monkeypatch: Patch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = StageError(type="Exception", message="expected value at line 1 column 1")
    ending = ProcessExit(code=1, error_event=message, log=Path("x.log"))
    assert "HF_HUB_OFFLINE" not in fault_of_stage("describe", ending).hint
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    assert "Its libraries read HF_HUB_DOWNLOAD_TIMEOUT" in fault_of_stage("x", ending).hint


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
    message = StageError(type="RuntimeError", message=words)
    fault = fault_of_stage("decode", ProcessExit(code=1, error_event=message, log=Path("x.log")))
    assert isinstance(fault, StageDied) and advice in fault.hint


def test_stages_count_cards_as_the_driver_does(monkeypatch: Patch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert child_environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_torch_on_another_card_is_seen(seen: Seen, monkeypatch: Patch) -> None:
    import torch

    seen(gpus.plain())

    class Properties:
        uuid = gpus.gpu(1).uuid.removeprefix("GPU-")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    with pytest.raises(EnvironmentFault, match="torch uses GPU-fa4e0001"):
        check_same_card(CARD)
    Properties.uuid = gpus.gpu(0).uuid.removeprefix("GPU-")
    check_same_card(CARD)


def test_segments_do_not_grow_under_windows(seen: Seen, monkeypatch: Patch) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for machine, named, expected in (
        (gpus.plain(), {}, "expandable_segments:True"),
        (gpus.wsl2(), {}, None),
        (gpus.wsl2(), {names[0]: "max_split_size_mb:64"}, "max_split_size_mb:64"),
        (gpus.plain(), {names[1]: "backend:native"}, None),
    ):
        with monkeypatch.context() as patch:
            for name in names:
                patch.delenv(name, raising=False)
            for name, value in named.items():
                patch.setenv(name, value)
            seen(machine)
            assert child_environment().get(names[0]) == expected


def test_containers_can_share_the_lock(seen: Seen, monkeypatch: Patch, tmp_path: Path) -> None:
    seen(gpus.plain())
    name = f"penstock-{gpus.gpu().uuid}.lock"
    assert lock_path(CARD) == Path("/tmp") / name
    monkeypatch.setenv("PENSTOCK_LOCKS", str(tmp_path))
    assert lock_path(CARD) == tmp_path / name
    monkeypatch.setenv("PENSTOCK_LOCKS", str(tmp_path / "none"))
    with pytest.raises(EnvironmentFault, match="is not a folder"):
        lock_path(CARD)


def card(folder: Path, address: str, vendor: str, video_bytes: int = 0) -> Path:
    """Write a card as the kernel lists it; returns the folder of all cards."""
    device, cards = folder / "devices" / address, folder / "drm"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    if video_bytes:
        (device / "mem_info_vram_total").write_text(f"{video_bytes}\n")
    number = len(list(cards.glob("card?"))) if cards.exists() else 0
    (cards / f"card{number}").mkdir(parents=True)
    (cards / f"card{number}" / "device").symlink_to(device)
    (cards / f"card{number}-HDMI-A-1").mkdir()  # a connector
    return cards


@pytest.mark.parametrize(
    ("address", "vendor", "video_bytes", "named"),
    [
        ("0000:03:00.0", NVIDIA, 0, "NVIDIA"),
        ("0000:03:00.0", AMD, 16 << 30, "by AMD"),
        ("0000:06:00.0", AMD, 512 << 20, ""),
        ("0000:03:00.0", INTEL, 0, "by Intel"),
        (INTEGRATED, INTEL, 0, ""),
        ("0000:01:00.0", "0x1234", 0, ""),
    ],
)
def test_a_gpu_that_cannot_be_used_is_named(
    address: str, vendor: str, video_bytes: int, named: str, tmp_path: Path
) -> None:
    found = unused_gpu(card(tmp_path, address, vendor, video_bytes))
    assert named in found and bool(found) == bool(named)


def test_one_beside_integrated_graphics_is_found(tmp_path: Path) -> None:
    card(tmp_path, INTEGRATED, INTEL)
    assert "AMD" in unused_gpu(card(tmp_path, "0000:03:00.0", AMD, 8 << 30))
    assert unused_gpu(tmp_path / "none") == ""


def test_a_mac_and_a_machine_without_cards(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "Apple" in unused_gpu(tmp_path)


def test_doctor_names_it_in_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(unused_gpu, "__defaults__", (card(tmp_path, "0000:03:00.0", AMD, 8 << 30),))
    (line,) = _device("cpu")
    assert "there is a GPU by AMD, which is not supported" in line


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_streams_and_events_of_a_stage_are_of_its_device(budget: int, monkeypatch: Patch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(memory_limit, "limit_device", lambda *given: given)
    monkeypatch.setattr(memory_limit, "_device_limits", [])
    memory_limit.enforce("cuda:1", budget, "bfloat16")
    assert chosen == ["cuda:1"]
