"""What a stage's process may take, and how its death of memory is told from other deaths."""

import ctypes
import json
import mmap
import os
import signal
import struct
import threading
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import CannotFit, Killed, OutOfMemory, StageDied
from stages.process import deadlock_watchdog
from stages.process.report import EventReporter
from tests.support.started import hold, started

HERE = Path(__file__)
MIB = 1 << 20
BUDGET = 48 * MIB


# What the children of these tests run; each is named by its place in this file.
def warm(job: dict[str, Any]) -> None:
    if job.get("impatient"):
        deadlock_watchdog.STUCK_SECONDS = 0.5
        deadlock_watchdog.RECHECK_SECONDS, deadlock_watchdog.SILENT_SECONDS = 0.2, 1.0
    for name in job.get("imports", ()):
        import_module(name)


def of_python(job: dict[str, Any], report: EventReporter) -> None:
    hold(job["bytes"])


def of_numpy(job: dict[str, Any], report: EventReporter) -> None:
    import numpy as np

    np.ones(job["bytes"], np.uint8)


def of_torch(job: dict[str, Any], report: EventReporter) -> None:
    import torch

    torch.ones(job["bytes"], dtype=torch.uint8)


def of_cxx(job: dict[str, Any], report: EventReporter) -> None:
    library = ctypes.CDLL("libstdc++.so.6")
    library._Znwm(ctypes.c_size_t(job["bytes"]))  # operator new, which throws into plain C


def of_a_map(job: dict[str, Any], report: EventReporter) -> None:
    mmap.mmap(-1, job["bytes"], flags=mmap.MAP_PRIVATE)


def of_weights(job: dict[str, Any], report: EventReporter) -> None:
    from safetensors import safe_open

    count, path = job["bytes"], Path(job["file"])  # one tensor, all of it a hole
    tensor = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
    header = json.dumps({"weight": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + count)
    with safe_open(path, "np") as file:
        file.get_tensor("weight")


def of_threads(job: dict[str, Any], report: EventReporter) -> None:
    held, over = [hold(BUDGET * 3 // 4)], threading.Event()
    for _ in range(200):
        threading.Thread(target=over.wait, daemon=True).start()
    held.clear()


def of_waiting(job: dict[str, Any], report: EventReporter) -> None:
    held, lock = [hold(BUDGET * 3 // 4)], threading.Lock()
    with lock:
        lock.acquire()
    held.clear()


def of_the_lock(job: dict[str, Any], report: EventReporter) -> None:
    held = [hold(BUDGET * 3 // 4)]
    time.sleep(0.3)
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock in hand
    held.clear()


def says(job: dict[str, Any], report: EventReporter) -> None:
    held = [hold(job["bytes"])]
    time.sleep(0.2)
    if job.get("first_gives_back"):
        held.clear()
    try:
        raise RuntimeError(job["words"])
    finally:
        held.clear()


def is_killed(job: dict[str, Any], report: EventReporter) -> None:
    held = [hold(job["bytes"])]
    report.item("made")
    time.sleep(0.2)
    os.kill(os.getpid(), job["signal"])
    held.clear()


def starts_threads(job: dict[str, Any], report: EventReporter) -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(job["threads"])]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    held = hold(job["bytes"])
    over.set()
    for thread in threads:
        thread.join()
    report.note(held=len(held))


start = partial(started, HERE.stem, budget=BUDGET)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parent}:{HERE.parent.parent}")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


@pytest.mark.parametrize(
    ("name", "words", "imports"),
    [
        ("of_python", "MemoryError", []),
        ("of_numpy", "Unable to allocate", ["numpy"]),
        pytest.param("of_torch", "DefaultCPUAllocator", ["torch"], marks=pytest.mark.slow),
        ("of_cxx", "bad_alloc", []),
        ("of_a_map", "Cannot allocate memory", []),
        ("of_threads", "thread", []),
        ("of_waiting", "no thread makes progress", []),
        ("of_the_lock", "SIGALRM", []),
        ("of_weights", ".", ["numpy", "safetensors.numpy"]),
    ],
)
def test_lack_of_memory_is_told(name: str, words: str, imports: list[str], tmp_path: Path) -> None:
    weights = str(tmp_path / "model.safetensors")
    job: dict[str, Any] = {"imports": imports, "impatient": True, "file": weights}
    process = start(name, tmp_path, bytes=400 * MIB, **job)
    with pytest.raises(OutOfMemory, match=words) as caught:
        process.wait()
    assert caught.value.exit_code == CannotFit.exit_code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_who_is_killed_at_its_budget_died_of_memory(number: int, tmp_path: Path) -> None:
    process = start("is_killed", tmp_path, bytes=BUDGET * 93 // 100, signal=number)
    with pytest.raises(OutOfMemory, match="signal") as caught:
        process.wait()
    assert caught.value.items == 1
    assert 0.9 * BUDGET < caught.value.peak_bytes < BUDGET
    assert process.outcome.peak_host_bytes > caught.value.peak_bytes
    assert process.outcome.timeline


WORDS = "could not create a primitive"
STRANGE = {"words": "unknown parameter type", "first_gives_back": True}


@pytest.mark.parametrize(
    ("name", "share", "budget", "job", "error"),
    [
        ("is_killed", 0.5, BUDGET, {"signal": signal.SIGKILL}, Killed),
        ("says", 0.67, BUDGET, {"words": WORDS}, OutOfMemory),
        ("says", 0.02, 1 << 30, {"words": WORDS}, StageDied),
        ("says", 0.02, 0, {"words": WORDS}, StageDied),
        ("says", 0.93, BUDGET, STRANGE, OutOfMemory),
        ("says", 0.5, BUDGET, STRANGE, StageDied),
    ],
)
def test_doubtful_ends_are_of_memory_where_it_was_short(
    name: str,
    share: float,
    budget: int,
    job: dict[str, Any],
    error: type[StageDied],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=job.get("words", "SIGKILL")) as caught:
        start(name, tmp_path, budget=budget, bytes=int(share * BUDGET), **job).wait()
    assert caught.type is error


@pytest.mark.parametrize("share", [0.9, 1.15])
def test_who_needs_less_than_the_budget_lives(share: float, tmp_path: Path) -> None:
    process = start("of_numpy", tmp_path, bytes=int(share * BUDGET), imports=["numpy"])
    if share < 1:
        process.wait()
    else:
        with pytest.raises(OutOfMemory):
            process.wait()


def test_the_stacks_of_threads_take_nothing_of_the_budget(tmp_path: Path) -> None:
    outcome = start("starts_threads", tmp_path, threads=30, bytes=BUDGET * 9 // 10).wait()
    assert outcome.notes["held"] == BUDGET * 9 // 10
