"""A GPU is tried before any work begins, and stages are forked on it until a fork cannot use it.
The card is stood in for."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk.locks import try_hold
from artifacts.errors import EnvironmentFault, StageDied
from artifacts.records.store import Store, open_store
from flows.core.machine import budget
from flows.core.machine.budget import check_device, device_memory, try_device
from flows.core.machine.launch import DirectLauncher, ForkingLauncher, StageCall, StageHandle
from flows.core.options.store import default_store
from scripts.prove.gpu_check import forks as gpu_forks
from stages.process.device import lock_path
from stages.process.events import Event, Warned
from stages.process.fork_client import ForkServer
from tests.support import gpus
from tests.support.builders.jobs import made_job
from tests.support.fake_gpu.holding import FORKED
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


def default() -> Store:
    return open_store(default_store())


@pytest.mark.slow
def test_what_was_found_is_not_asked_again(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = seen(gpus.plain())
    check_device(CARD, default())
    assert len(gpus.contexts(folder)) == 1 and os.getpid() not in gpus.contexts(folder)
    check_device(CARD, default())
    assert len(gpus.contexts(folder)) == 1
    seen(gpus.plain(driver_version="999.1"))
    monkeypatch.setattr(budget, "try_device", lambda _: pytest.fail("tried anew"))
    with pytest.raises(pytest.fail.Exception, match="tried anew"):  # another driver may not do
        check_device(CARD, default())


@pytest.mark.slow
def test_a_gpu_that_torch_cannot_use_is_told_with_what_to_do(seen: Seen) -> None:
    machine = gpus.old_driver()
    seen(machine)
    with pytest.raises(EnvironmentFault, match="driver on your system is too old") as caught:
        check_device(CARD, default())
    assert machine.gpus[0].name in caught.value.message
    assert "Update the NVIDIA driver" in caught.value.hint
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.hint


@pytest.mark.parametrize(
    "fault", ["BrokenPipeError: Broken pipe", "ImportError: libcudart.so.13: cannot open"]
)
def test_what_fails_for_another_reason_is_not_blamed_on_the_gpu(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def fails(_: str) -> dict[str, Any]:
        raise StageDied(f"the probe stage failed: {fault}")

    seen(gpus.plain())
    monkeypatch.setattr(budget, "_run_probe", fails)
    with pytest.raises(EnvironmentFault) as caught:
        check_device(CARD, default())
    assert caught.value.message == f"the GPU could not be tested: {fault}"
    assert "penstock doctor" in caught.value.hint


@pytest.mark.slow
def test_a_driver_that_cannot_let_segments_grow_is_done_without(seen: Seen) -> None:
    seen(gpus.plain(expandable_fails=True))
    check_device(CARD, default())
    assert os.environ.pop("PYTORCH_ALLOC_CONF") == "expandable_segments:False"
    check_device(CARD, default())  # remembered
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:False"


@pytest.mark.slow
def test_memory_that_the_driver_does_not_tell_is_asked_of_torch(seen: Seen) -> None:
    seen(gpus.no_memory_info())
    free, total = device_memory(CARD)
    assert total == 8 << 30 and 0 < free < total


def test_a_card_that_is_in_use_is_not_tried(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = seen(gpus.plain())
    monkeypatch.setattr(budget, "try_device", lambda _: pytest.fail("tried"))
    held = try_hold(lock_path(CARD))
    assert held is not None
    with held:
        check_device(CARD, default())
    assert not gpus.contexts(folder)


def test_what_cannot_be_remembered_ends_no_run(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(gpus.plain())
    (tmp_path / "file").touch()
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "file" / "store"))
    monkeypatch.setattr(budget, "try_device", lambda _: {"expandable": True})
    check_device(CARD, default())


@pytest.mark.slow
def test_a_full_card_is_no_broken_one(seen: Seen) -> None:
    seen(gpus.plain(cuda_error="CUDA error: out of memory"))
    assert try_device(CARD) == {}


DOCTOR = "PENSTOCK_TEST_DOCTOR"
STAGES = f"""
import os
def told(job, report):
    report.note(parent=os.getppid())
def told_if_fresh(job, report):
    if os.getppid() != int(os.environ[{DOCTOR!r}]):
        raise RuntimeError({FORKED!r})
    report.note(parent=os.getppid(), digest="")
def told_with_other_bits(job, report):
    report.note(parent=os.getppid(), digest=os.getppid())
"""
"""Stages that import nothing. The second one is what a driver does under which forks cannot use
CUDA."""


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with a card, on which nothing was tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PENSTOCK_LOCKS", str(tmp_path))
    monkeypatch.setenv(DOCTOR, str(os.getpid()))
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # it changes, and servers would differ
    (tmp_path / "light_stages.py").write_text(STAGES)
    yield see(tmp_path, monkeypatch)


def see(folder: Path, patch: pytest.MonkeyPatch, **more: Any) -> Path:
    cards = gpus.see(gpus.plain(**more), folder / "gpu", patch)
    ours = gpus.environment(cards)["PYTHONPATH"]
    patch.setenv("PYTHONPATH", os.pathsep.join([ours, str(folder)]))
    return cards


class Launched:
    """Starts stages as a run does."""

    def __init__(self, entry: str, forks: ForkServer, folder: Path) -> None:
        self.heard: list[Event] = []
        direct = DirectLauncher(self._hear, {"describe": entry})
        self._launcher = ForkingLauncher(direct, forks, self._hear)
        self._folder = folder

    def _hear(self, _: str, event: Event) -> None:
        self.heard.append(event)

    def start(self, **more: Any) -> StageHandle:
        log = self._folder / "log"
        call = StageCall(name="describe", job=made_job(), device=CARD, log=log, **more)
        return self._launcher.start(call)

    def is_forked(self) -> bool:
        return bool(self.start().wait().notes["parent"] != os.getpid())


@pytest.mark.parametrize(
    ("entry", "why"),
    [("told_if_fresh", "forked subprocess"), ("told_with_other_bits", "computes other bits")],
)
def test_the_check_of_forks_says_why_a_card_cannot_be_forked_for(
    entry: str, why: str, cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_forks.ENTRIES, "try_forks", f"light_stages:{entry}")
    assert why in gpu_forks.try_forks(CARD)


def test_a_fork_that_cannot_use_cuda_is_started_anew_and_is_the_last(
    cards: Path, tmp_path: Path
) -> None:
    with ForkServer() as forks:
        stages = Launched("light_stages:told_if_fresh", forks, tmp_path)
        outcome = stages.start().wait()
        assert outcome.notes["parent"] == os.getpid()
        (printed,) = [event.text for event in stages.heard if isinstance(event, Warned)]
        assert "no longer forked" in printed and printed in outcome.warnings
        assert not stages.is_forked()


def test_a_worker_whose_requests_are_gone_is_left_to_its_server(
    cards: Path, tmp_path: Path
) -> None:
    with ForkServer() as forks:
        stages = Launched("light_stages:told_if_fresh", forks, tmp_path)
        worker = stages.start(beside=True)
        with pytest.raises(StageDied, match="forked subprocess"):
            worker.wait()
        assert stages.start(beside=True).wait().notes["parent"] == os.getpid()


@pytest.mark.slow
def test_a_server_that_has_used_cuda_forks_nothing(cards: Path, tmp_path: Path) -> None:
    code = "import torch; torch.zeros(1, device='cuda:0')\nfrom light_stages import told as run\n"
    (tmp_path / "uses_cuda.py").write_text(code)
    with ForkServer() as forks:
        assert not Launched("uses_cuda:run", forks, tmp_path).is_forked()
        assert not Launched("light_stages:told", forks, tmp_path).is_forked()


def test_libraries_that_ask_cuda_are_imported_after_the_fork(cards: Path, tmp_path: Path) -> None:
    (tmp_path / "asks_cuda.py").write_text("import os\nIMPORTED_BY = os.getpid()\n")
    code = "import os\nfrom stages.process.deferred_imports import import_asking_cuda\n"
    code += "def warm(job):\n    import_asking_cuda('asks_cuda')\n"
    code += "def run(job, report):\n    import asks_cuda\n"
    code += "    report.note(parent=os.getppid(), own=asks_cuda.IMPORTED_BY == os.getpid())\n"
    (tmp_path / "warms.py").write_text(code)
    with ForkServer() as forks:
        notes = Launched("warms:run", forks, tmp_path).start().wait().notes
        assert notes["parent"] != os.getpid() and notes["own"]
