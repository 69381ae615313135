"""A GPU is tried before any work begins, by a process of its own that computes on a stand-in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault
from flows.machine import device_probe
from flows.machine.device_probe import check_device, device_memory, try_device
from stages.process.lock import lock_path, try_hold
from tests.support import gpus
from tests.support.fake_gpu.state import Machine

CARD = "cuda:0"
ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class Seen:
    """A machine that this process and its children see."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("PENSTOCK_LOCKS", str(folder))

    def __call__(self, machine: Machine) -> Path:
        folder = gpus.see(machine, self._folder / "gpu", self._patch)
        self._patch.setenv("PYTHONPATH", gpus.environment(folder)["PYTHONPATH"])
        return folder


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    for name in ALLOCATORS:
        monkeypatch.delenv(name, raising=False)
    yield Seen(tmp_path, monkeypatch)
    for name in ALLOCATORS:
        os.environ.pop(name, None)


def test_what_was_found_is_not_asked_again(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = seen(gpus.plain())
    check_device(CARD)
    assert len(gpus.contexts(folder)) == 1 and os.getpid() not in gpus.contexts(folder)
    check_device(CARD)
    assert len(gpus.contexts(folder)) == 1
    seen(gpus.plain(driver_version="999.1"))
    monkeypatch.setattr(device_probe, "try_device", lambda _: pytest.fail("tried anew"))
    with pytest.raises(pytest.fail.Exception, match="tried anew"):  # another driver may not do
        check_device(CARD)


def test_a_gpu_that_torch_cannot_use_is_told_with_what_to_do(seen: Seen) -> None:
    machine = gpus.old_driver()
    seen(machine)
    with pytest.raises(EnvironmentFault, match="driver on your system is too old") as caught:
        check_device(CARD)
    assert machine.gpus[0].name in caught.value.message
    assert "Update the NVIDIA driver" in caught.value.hint
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.hint


@pytest.mark.slow
def test_a_driver_that_cannot_let_segments_grow_is_done_without(seen: Seen) -> None:
    seen(gpus.plain(expandable_fails=True))
    check_device(CARD)
    assert os.environ.pop("PYTORCH_ALLOC_CONF") == "expandable_segments:False"
    check_device(CARD)  # remembered
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:False"


@pytest.mark.slow
def test_memory_that_the_driver_does_not_tell_is_asked_of_torch(seen: Seen) -> None:
    seen(gpus.no_memory_info())
    free, total = device_memory(CARD)
    assert total == 8 << 30 and 0 < free < total


def test_a_card_that_is_in_use_is_not_tried(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = seen(gpus.plain())
    monkeypatch.setattr(device_probe, "try_device", lambda _: pytest.fail("tried"))
    held = try_hold(lock_path(CARD))
    assert held is not None
    with held:
        check_device(CARD)
    assert not gpus.contexts(folder)


def test_what_cannot_be_remembered_ends_no_run(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(gpus.plain())
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(device_probe, "try_device", lambda _: {"expandable": True})
    check_device(CARD)


@pytest.mark.slow
def test_a_full_card_is_no_broken_one(seen: Seen) -> None:
    seen(gpus.plain(cuda_error="CUDA error: out of memory"))
    assert try_device(CARD) == {}
