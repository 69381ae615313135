"""What a stage's process may take, and how its death of memory is told from other deaths: each in a
real process that really runs out."""

import ctypes
import json
import mmap
import os
import signal
import struct
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import CannotFit, Killed, OutOfMemory, StageDied
from stages.process import deadlock_watchdog
from stages.process.report import Report
from stages.process.stage_process import StageProcess

HERE = Path(__file__)
MIB = 1 << 20
BUDGET = 48 * MIB


# What the children of these tests run; each is named by its place in this file.
def warm(job: dict[str, Any]) -> None:
    if job.get("impatient"):
        deadlock_watchdog.STUCK_SECONDS = 0.5
        deadlock_watchdog.AGAIN_SECONDS, deadlock_watchdog.SILENT_SECONDS = 0.2, 2.0
    for name in job.get("imports", ()):
        import_module(name)


def hold(count: int) -> bytearray:
    held = bytearray(count)
    held[::4096] = b"x" * len(held[::4096])
    return held


def of_python(job: dict[str, Any], report: Report) -> None:
    hold(job["bytes"])


def of_numpy(job: dict[str, Any], report: Report) -> None:
    import numpy as np

    np.ones(job["bytes"], np.uint8)


def of_torch(job: dict[str, Any], report: Report) -> None:
    import torch

    torch.ones(job["bytes"], dtype=torch.uint8)


def of_cxx(job: dict[str, Any], report: Report) -> None:
    library = ctypes.CDLL("libstdc++.so.6")
    library._Znwm(ctypes.c_size_t(job["bytes"]))  # operator new, which throws into plain C


def of_a_map(job: dict[str, Any], report: Report) -> None:
    mmap.mmap(-1, job["bytes"], flags=mmap.MAP_PRIVATE)


def of_weights(job: dict[str, Any], report: Report) -> None:
    from safetensors import safe_open

    with safe_open(job["file"], "np") as file:
        file.get_tensor("weight")


def of_threads(job: dict[str, Any], report: Report) -> None:
    held, over = [hold(BUDGET * 3 // 4)], threading.Event()
    for _ in range(200):
        threading.Thread(target=over.wait, daemon=True).start()
    held.clear()


def of_waiting(job: dict[str, Any], report: Report) -> None:
    held, lock = [hold(BUDGET * 3 // 4)], threading.Lock()
    with lock:
        lock.acquire()
    held.clear()


def of_the_lock(job: dict[str, Any], report: Report) -> None:
    held = [hold(BUDGET * 3 // 4)]
    time.sleep(0.3)
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock in hand
    held.clear()


def says(job: dict[str, Any], report: Report) -> None:
    held = [hold(job["bytes"])]
    time.sleep(0.2)
    try:
        raise RuntimeError(job["words"])
    finally:
        held.clear()


def fails_strangely(job: dict[str, Any], report: Report) -> None:
    held = [hold(job["bytes"])]
    time.sleep(0.2)
    held.clear()
    raise RuntimeError("unknown parameter type")


def is_killed(job: dict[str, Any], report: Report) -> None:
    held = [hold(job["bytes"])]
    report.item("made")
    time.sleep(0.2)
    os.kill(os.getpid(), job["signal"])
    held.clear()


def starts_threads(job: dict[str, Any], report: Report) -> None:
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


def start(name: str, tmp_path: Path, allowed: int = BUDGET, **job: Any) -> StageProcess:
    return StageProcess(
        name,
        f"{HERE.stem}:{name}",
        job,
        device="cpu",
        log=tmp_path / "log",
        listen=lambda *_: None,
        budget=allowed,
    )


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of one tensor of 400 MiB, all of them a hole."""
    count = 400 * MIB
    tensor = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
    header = json.dumps({"weight": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + count)
    return path


@pytest.mark.parametrize(
    ("name", "words", "imports"),
    [
        ("of_python", "MemoryError", []),
        ("of_numpy", "Unable to allocate", ["numpy"]),
        ("of_torch", "DefaultCPUAllocator", ["torch"]),
        ("of_cxx", "bad_alloc", []),
        ("of_a_map", "Cannot allocate memory", []),
        ("of_threads", "thread", []),
        ("of_waiting", "no thread went on", []),
        ("of_the_lock", "SIGALRM", []),
    ],
)
def test_a_process_that_gets_no_more_memory_is_told_as_that(
    name: str, words: str, imports: list[str], tmp_path: Path
) -> None:
    process = start(name, tmp_path, bytes=400 * MIB, imports=imports, impatient=True)
    with pytest.raises(OutOfMemory, match=words) as caught:
        process.wait()
    assert caught.value.exit_code == CannotFit.exit_code
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_told_as_that(tmp_path: Path, weights: Path) -> None:
    process = start(
        "of_weights", tmp_path, file=str(weights), imports=["numpy", "safetensors.numpy"]
    )
    with pytest.raises(OutOfMemory):
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_process_that_ends_by_a_signal_at_its_budget_died_of_memory(
    number: int, tmp_path: Path
) -> None:
    process = start("is_killed", tmp_path, bytes=BUDGET * 93 // 100, signal=number)
    with pytest.raises(OutOfMemory, match="signal") as caught:
        process.wait()
    assert caught.value.items == 1
    assert 0.9 * BUDGET < caught.value.peak_bytes < BUDGET
    assert process.outcome.peak_host_bytes > caught.value.peak_bytes
    assert process.outcome.timeline


def test_a_process_that_is_killed_far_below_its_budget_did_not(tmp_path: Path) -> None:
    process = start("is_killed", tmp_path, bytes=BUDGET // 2, signal=signal.SIGKILL)
    with pytest.raises(Killed):
        process.wait()
    process = start("is_killed", tmp_path, bytes=BUDGET // 2, signal=signal.SIGSEGV)
    with pytest.raises(StageDied):
        process.wait()


WORDS = "could not create a primitive"


def test_doubtful_words_count_where_memory_was_short(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=WORDS):
        start("says", tmp_path, bytes=BUDGET * 2 // 3, words=WORDS).wait()


def test_doubtful_words_are_no_death_of_memory_where_there_was_enough(tmp_path: Path) -> None:
    with pytest.raises(StageDied, match=WORDS):
        start("says", tmp_path, 1 << 30, bytes=MIB, words=WORDS).wait()
    with pytest.raises(StageDied, match=WORDS):
        start("says", tmp_path, 0, bytes=MIB, words=WORDS).wait()


def test_a_strange_failure_counts_where_there_was_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="unknown parameter type"):
        start("fails_strangely", tmp_path, bytes=BUDGET * 93 // 100).wait()
    with pytest.raises(StageDied, match="unknown parameter type"):
        start("fails_strangely", tmp_path, bytes=BUDGET // 2).wait()


@pytest.mark.parametrize("share", [0.9, 1.15])
def test_who_needs_less_than_the_budget_lives_and_who_needs_more_does_not(
    share: float, tmp_path: Path
) -> None:
    process = start("of_numpy", tmp_path, bytes=int(share * BUDGET), imports=["numpy"])
    if share < 1:
        process.wait()
    else:
        with pytest.raises(OutOfMemory):
            process.wait()


def test_the_stacks_of_threads_take_nothing_of_the_budget(tmp_path: Path) -> None:
    outcome = start("starts_threads", tmp_path, threads=40, bytes=BUDGET * 9 // 10).wait()
    assert outcome.notes["held"] == BUDGET * 9 // 10
