"""What a stage's process may take, and what it ended of, told by its last words, the kernel's count
and its peak."""

import ctypes
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import (
    CannotFit,
    Interrupted,
    Killed,
    OutOfMemory,
    PenstockError,
    StageDied,
    UsageError,
)
from stages.process import memory_limit
from stages.process.events import EventReporter, MemorySample, StageError
from stages.process.exit_diagnosis import ProcessExit, fault_of_stage, log_tail, oom_message
from stages.process.memory import Sampler, process_memory
from tests.support.started import hold, started

HERE = Path(__file__)
MIB = 1 << 20
BUDGET = 48 * MIB
Job = dict[str, Any]


# What the children of these tests run; each is named by its place in this file.
def warm(job: Job) -> None:
    if job.get("impatient"):
        memory_limit.STUCK_SECONDS = 0.5
        memory_limit.RECHECK_SECONDS, memory_limit.SILENT_SECONDS = 0.2, 1.0
    for name in job.get("imports", ()):
        import_module(name)


def of_python(job: Job, report: EventReporter) -> None:
    hold(job["bytes"])


def of_numpy(job: Job, report: EventReporter) -> None:
    import numpy as np

    np.ones(job["bytes"], np.uint8)


def of_torch(job: Job, report: EventReporter) -> None:
    import torch

    torch.ones(job["bytes"], dtype=torch.uint8)


def of_cxx(job: Job, report: EventReporter) -> None:
    library = ctypes.CDLL("libstdc++.so.6")
    library._Znwm(ctypes.c_size_t(job["bytes"]))  # operator new, which throws into plain C


def of_a_map(job: Job, report: EventReporter) -> None:
    mmap.mmap(-1, job["bytes"], flags=mmap.MAP_PRIVATE)


def of_weights(job: Job, report: EventReporter) -> None:
    from safetensors import safe_open

    count, path = job["bytes"], Path(job["file"])  # one tensor, all of it a hole
    tensor = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
    header = json.dumps({"weight": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + count)
    with safe_open(path, "np") as file:
        file.get_tensor("weight")


def of_threads(job: Job, report: EventReporter) -> None:
    held, over = [hold(BUDGET * 3 // 4)], threading.Event()
    for _ in range(200):
        threading.Thread(target=over.wait, daemon=True).start()
    held.clear()


def of_waiting(job: Job, report: EventReporter) -> None:
    held, lock = [hold(BUDGET * 3 // 4)], threading.Lock()
    with lock:
        lock.acquire()
    held.clear()


def of_the_lock(job: Job, report: EventReporter) -> None:
    held = [hold(BUDGET * 3 // 4)]
    time.sleep(0.3)
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock in hand
    held.clear()


def says(job: Job, report: EventReporter) -> None:
    held = [hold(job["bytes"])]
    time.sleep(0.2)
    if job.get("first_gives_back"):
        held.clear()
    try:
        raise RuntimeError(job["words"])
    finally:
        held.clear()


def is_killed(job: Job, report: EventReporter) -> None:
    held = [hold(job["bytes"])]
    report.answered("made")
    time.sleep(0.2)
    os.kill(os.getpid(), job["signal"])
    held.clear()


def starts_threads(job: Job, report: EventReporter) -> None:
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
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parent}:{HERE.parents[2]}")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "imports"),
    [
        ("of_python", "MemoryError", []),
        ("of_numpy", "Unable to allocate", ["numpy"]),
        ("of_torch", "DefaultCPUAllocator", ["torch"]),
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
    job: Job = {"imports": imports, "impatient": True, "file": weights}
    process = start(name, tmp_path, bytes=400 * MIB, **job)
    with pytest.raises(OutOfMemory, match=words) as caught:
        process.wait()
    assert caught.value.exit_code == CannotFit.exit_code
    assert "\n" not in str(caught.value)


@pytest.mark.slow
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


@pytest.mark.slow
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
    name: str, share: float, budget: int, job: Job, error: type[StageDied], tmp_path: Path
) -> None:
    with pytest.raises(error, match=job.get("words", "SIGKILL")) as caught:
        start(name, tmp_path, budget=budget, bytes=int(share * BUDGET), **job).wait()
    assert caught.type is error


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.9, 1.15])
def test_who_needs_less_than_the_budget_lives(share: float, tmp_path: Path) -> None:
    process = start("of_numpy", tmp_path, bytes=int(share * BUDGET), imports=["numpy"])
    if share < 1:
        process.wait()
    else:
        with pytest.raises(OutOfMemory):
            process.wait()


@pytest.mark.slow
def test_the_stacks_of_threads_take_nothing_of_the_budget(tmp_path: Path) -> None:
    outcome = start("starts_threads", tmp_path, threads=30, bytes=BUDGET * 9 // 10).wait()
    assert outcome.notes["held"] == BUDGET * 9 // 10


LIBGOMP = "libgomp: Thread creation failed: x"
KEY = StageError(type="KeyError", message="'x'")
USAGE = StageError(type="UsageError", message="no", hint="y")


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "OutOfMemoryError: CUDA out of memory",
        "AcceleratorError: CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: not enough workspace",
        "cuDNN SDPA execution failed (CUDA_ERROR_OUT_OF_MEMORY): CUDA ran out of memory outside",
        "Triton Error [CUDA]: out of memory",
        "cudaGraphInstantiate failed: out of memory",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "memory allocation of 73400320 bytes failed",
        "Error out of memory at line 380 in file /src/csrc/ops.cu",
    ],
)
def test_words_of_a_death_of_memory_are_known_wherever_they_stand(words: str) -> None:
    message = StageError(type="RuntimeError", message=words)
    last_lines, log = (words, "  what():  something", "Aborted"), Path("log")
    for ending in (
        ProcessExit(code=1, error_event=message, log=log),
        ProcessExit(code=-6, log=log, last_lines=last_lines),
    ):
        assert type(fault_of_stage("encode", ending)) is OutOfMemory


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ({"code": -9}, Killed),
        ({"code": 137}, Killed),
        ({"code": -9, "oom_kills": 1}, OutOfMemory),
        ({"code": 137, "oom_kills": 1}, OutOfMemory),
        ({"code": -9, "peak_bytes": 90, "budget": 100}, OutOfMemory),
        ({"code": -9, "peak_bytes": 89, "budget": 100}, Killed),
        ({"code": -11, "peak_bytes": 95, "budget": 100}, OutOfMemory),
        ({"code": -11, "peak_bytes": 95}, StageDied),
        ({"code": -11, "peak_bytes": 20 << 20, "budget": 50 << 20}, OutOfMemory),
        ({"code": -9, "peak_bytes": 20 << 20, "budget": 50 << 20}, Killed),
        ({"code": -11, "peak_bytes": 20 << 20, "budget": 1 << 30}, StageDied),
        ({"code": 1, "peak_bytes": 99, "budget": 100}, StageDied),
        ({"code": 1, "last_lines": (LIBGOMP,)}, StageDied),
        ({"code": 1, "last_lines": (LIBGOMP,), "peak_bytes": 60, "budget": 100}, OutOfMemory),
        ({"code": -15}, Interrupted),
        ({"code": 1, "error_event": StageError(type="MemoryError")}, OutOfMemory),
        ({"code": 1, "error_event": KEY, "last_lines": ("CUDA out of memory",)}, StageDied),
        ({"code": 1, "error_event": USAGE}, UsageError),
    ],
)
def test_a_silent_death_is_diagnosed(ending: dict[str, Any], expected: type[PenstockError]) -> None:
    assert type(fault_of_stage("decode", ProcessExit(log=Path("log"), **ending))) is expected


def test_a_warning_is_not_the_reason_of_a_death() -> None:
    lines = ("x.py:3: FutureWarning: use another", "  warnings.warn(")
    error = fault_of_stage("tune", ProcessExit(log=Path("log"), code=-11, last_lines=lines))
    assert error.message == "the tune stage failed: signal 11 (SIGSEGV)"


def test_a_library_that_dies_of_a_setting_names_its_reason_and_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stack that C++ prints after its message has any length."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "foo")
    log = tmp_path / "stage.log"
    code = "import os; print('  what():  Index out of bounds', *['frame #1: x'] * 60, sep='\\n',"
    code += " flush=True); os.abort()"
    with log.open("wb") as output:
        subprocess.run([sys.executable, "-c", code], stdout=output)
    assert log_tail(log, 0)[-1] == "Index out of bounds"
    ending = ProcessExit(code=-6, log=log, last_lines=log_tail(log, 0))
    error = fault_of_stage("describe", ending)
    assert error.message == "the describe stage failed: Index out of bounds"
    assert "PYTORCH_CUDA_ALLOC_CONF" in error.hint


def test_memory_is_found_behind_what_was_made_of_it() -> None:
    def fail() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("the weights cannot be read") from error

    with pytest.raises(ValueError) as caught:
        fail()
    assert oom_message(caught.value) == "MemoryError"
    assert oom_message(ValueError("memory of an elephant")) is None


def test_a_peak_that_rises_is_told_at_once() -> None:
    messages: list[MemorySample] = []
    with Sampler("cpu", messages.append) as memory:
        memory.sample()
        before = len(messages)
        held = hold(100 * MIB)
        memory.sample()
        assert len(messages) > before
        # The sampler's own thread may since have read a few pages more.
        assert 0 <= memory.peak_host_bytes - messages[-1].peak_host_bytes < MIB
        assert messages[-1].peak_host_bytes - messages[0].peak_host_bytes > 90 * MIB
        del held
    assert [len(point) for point in memory.timeline[:1]] == [3]


def test_what_a_process_may_write_to_counts_untouched() -> None:
    before = process_memory()
    held = mmap.mmap(-1, 100 * MIB, flags=mmap.MAP_PRIVATE)
    after = process_memory()
    held.close()
    assert after.data - before.data >= 100 * MIB
    assert after.anonymous - before.anonymous < 10 * MIB
    assert after.threads >= 1


def test_threads_that_wait_for_each_other_are_told_from_those_that_wait_for_a_disk() -> None:
    source, sink = os.pipe()
    reader = threading.Thread(target=os.read, args=(source, 1))
    reader.start()
    time.sleep(0.1)
    assert not memory_limit.all_wait()
    os.write(sink, b"x")
    reader.join()
    os.close(source)
    os.close(sink)
