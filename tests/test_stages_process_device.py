"""What the driver is asked, also after a stage, where it does not answer all of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault
from stages.process import baseline
from stages.process.baseline import given_back
from stages.process.device import (
    device_capability,
    device_free_bytes,
    device_holders,
    device_name,
    device_used_bytes,
    device_uuid,
    driver_version,
    hidden,
    on_wsl,
    other_devices,
)
from tests.support import gpus
from tests.support.fake_gpu.state import Machine

Seen = Callable[[Machine], Path]
MIB, GIB = 1 << 20, 1 << 30
CARD = "cuda:0"


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Sees a machine from now on."""
    return lambda machine: gpus.see(machine, tmp_path / "gpu", monkeypatch)


def visible(patch: pytest.MonkeyPatch, named: str) -> None:
    patch.setenv("CUDA_VISIBLE_DEVICES", named)


def test_a_driver_that_tells_all_is_believed(seen: Seen) -> None:
    folder = seen(gpus.plain())
    free, total = device_free_bytes(CARD)
    assert device_name() == CARD
    assert total == 8 * GIB and 0 < free < total
    assert device_used_bytes(CARD) == total - free
    assert device_capability(CARD) == (8, 6)
    assert device_uuid(CARD) == gpus.gpu().uuid and driver_version(CARD)
    assert gpus.contexts(folder) == [] and not on_wsl()


@pytest.mark.parametrize(
    "machine",
    [gpus.no_process_list(), gpus.no_memory_info(), gpus.wsl2()],
    ids=["list", "memory", "wsl"],
)
def test_what_the_driver_does_not_tell_is_unknown(seen: Seen, machine: Machine) -> None:
    seen(machine)
    assert device_name() == CARD
    assert device_holders(CARD) == {}
    known = machine.memory_info
    assert (device_free_bytes(CARD) != (0, 0)) is known
    assert (device_used_bytes(CARD) > 0) is known
    assert on_wsl() is machine.wsl


def test_what_a_process_holds_under_windows_is_unknown(seen: Seen) -> None:
    seen(gpus.busy(wsl=True))
    assert device_holders(CARD) == {1: 0}


def test_a_card_that_fell_off_the_bus_is_unknown_where_it_was_known(seen: Seen) -> None:
    folder = seen(gpus.plain())
    assert device_used_bytes(CARD) > 0
    gpus.lose(folder)
    assert device_used_bytes(CARD) == 0
    assert device_free_bytes(CARD) == (0, 0)
    assert device_holders(CARD) == {} and device_uuid(CARD) == CARD


def test_cards_are_counted_by_their_place_on_the_bus(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(gpus.two_unlike_cards())
    assert device_free_bytes(CARD)[1] == 4 * GIB
    visible(monkeypatch, "1")
    assert device_free_bytes(CARD)[1] == 24 * GIB
    visible(monkeypatch, "1,0")
    assert device_capability(CARD) == (8, 9) and device_capability("cuda:1") == (7, 5)


def test_the_cards_that_are_not_taken_are_known_until_one_is_chosen(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(gpus.two_unlike_cards())
    assert other_devices(CARD) == [(1, "NVIDIA GeForce RTX 4090", 24 * GIB)]
    visible(monkeypatch, "0")
    assert other_devices(CARD) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    seen(gpus.mig())
    assert other_devices(CARD) == [], "a part is of its card"


@pytest.mark.parametrize("named", ["GPU-fa4e0001", "GPU-fa4e0001-1111", gpus.gpu(1).uuid])
def test_a_uuid_is_taken_by_its_beginning(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    seen(gpus.two_unlike_cards())
    visible(monkeypatch, named)
    assert device_name() == CARD and device_uuid(CARD) == gpus.gpu(1).uuid


@pytest.mark.parametrize("named", [None, "0", gpus.part(0).uuid, "GPU-fa4e0000"])
def test_of_a_card_in_parts_one_part_is_meant(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    seen(gpus.mig())
    if named is not None:
        visible(monkeypatch, named)
    assert device_name() == CARD and device_uuid(CARD) == gpus.part(0).uuid
    assert device_free_bytes(CARD)[1] == 5 * GIB


def test_another_part_is_had_by_its_name(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(gpus.mig())
    visible(monkeypatch, gpus.part(1).uuid)
    assert device_uuid(CARD) == gpus.part(1).uuid


@pytest.mark.parametrize(
    "named", ["7", "GPU-0000", "MIG-0000", "GPU-fa4e", "gpu-fa4e0001", "first", "1 0"]
)
def test_a_name_that_the_driver_does_not_know_is_an_error(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    seen(gpus.two_unlike_cards())
    visible(monkeypatch, named)
    with pytest.raises(EnvironmentFault) as caught:
        device_name()
    assert named in caught.value.message and gpus.gpu(1).uuid in caught.value.message
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.hint


@pytest.mark.parametrize("named", ["", "-1", "-1,0", "NoDevFiles"])
def test_all_cards_can_be_hidden(seen: Seen, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    seen(gpus.plain())
    visible(monkeypatch, named)
    assert device_name() == "cpu" and hidden()


@pytest.mark.parametrize("why", ["LibraryNotFound", "DriverNotLoaded"])
def test_without_a_driver_the_cpu_is_used_unless_a_card_is_named(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    seen(gpus.plain(init_error=why))
    assert device_name() == "cpu" and not hidden()
    visible(monkeypatch, "0")
    with pytest.raises(EnvironmentFault, match="names 0, and no NVIDIA driver answers"):
        device_name()


def test_a_driver_out_of_order_is_no_missing_driver(seen: Seen) -> None:
    seen(gpus.plain(init_error="LibRmVersionMismatch"))
    with pytest.raises(EnvironmentFault, match="the NVIDIA driver does not answer") as caught:
        device_name()
    assert "restart" in caught.value.hint


def test_a_card_that_was_lost_before_is_no_missing_card(seen: Seen) -> None:
    gpus.lose(seen(gpus.plain()))
    with pytest.raises(EnvironmentFault, match="cannot reach GPU 0"):
        device_name()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "SECONDS", 0.0)


def test_what_does_not_come_back_is_told_with_who_holds_it(seen: Seen) -> None:
    seen(gpus.busy(1000 * MIB, pid=1))
    used, warnings = given_back(CARD, before=300 * MIB, peak=0)
    assert used >= 1300 * MIB
    [warning] = warnings
    assert "MiB of the GPU did not come back: process 1 hold memory" in warning
    assert given_back(CARD, before=used, peak=0) == (used, [])


def test_under_windows_a_full_gpu_is_told_because_nothing_fails(seen: Seen) -> None:
    peak = 8000 * MIB
    seen(gpus.plain())
    assert given_back(CARD, before=300 * MIB, peak=peak)[1] == []
    seen(gpus.wsl2())
    [warning] = given_back(CARD, before=300 * MIB, peak=peak)[1]
    assert "host memory" in warning and "docs/gpu.md" in warning
    assert given_back(CARD, before=300 * MIB, peak=peak // 2)[1] == []


@pytest.mark.parametrize("machine", [gpus.no_memory_info(), gpus.no_process_list()])
def test_a_driver_that_tells_little_is_waited_for_not_at_all(machine: Machine, seen: Seen) -> None:
    seen(machine)
    assert given_back(CARD, before=300 * MIB, peak=0)[1] == []
    assert given_back("cpu", before=0, peak=0) == (0, [])
