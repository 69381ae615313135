"""What a process ended of, told by its last words, the kernel's count and its peak."""

import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import Interrupted, Killed, OutOfMemory, PenstockError, StageDied, UsageError
from stages.process import deadlock_watchdog
from stages.process.events import StageError
from stages.process.exit_diagnosis import ProcessExit, fault_of_stage, oom_message
from stages.process.memory import Sampler, process_memory
from tests.support.started import hold

MIB = 1 << 20
LIBGOMP = "libgomp: Thread creation failed: x"
KEY = StageError(type="KeyError", message="'x'")


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
    told = StageError(type="RuntimeError", message=words)
    for ending in (
        ProcessExit(code=1, error_event=told, log=Path("log")),
        ProcessExit(
            code=-6, log=Path("log"), last_lines=(words, "  what():  something", "Aborted")
        ),
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
        ({"code": 1, "peak_bytes": 99, "budget": 100}, StageDied),
        ({"code": 1, "last_lines": (LIBGOMP,)}, StageDied),
        ({"code": 1, "last_lines": (LIBGOMP,), "peak_bytes": 60, "budget": 100}, OutOfMemory),
        ({"code": -15}, Interrupted),
        ({"code": 1, "error_event": StageError(type="MemoryError")}, OutOfMemory),
        ({"code": 1, "error_event": KEY, "last_lines": ("CUDA out of memory",)}, StageDied),
        (
            {"code": 1, "error_event": StageError(type="UsageError", message="no", hint="y")},
            UsageError,
        ),
    ],
)
def test_a_silent_death_is_diagnosed(ending: dict[str, Any], expected: type[PenstockError]) -> None:
    assert type(fault_of_stage("decode", ProcessExit(log=Path("log"), **ending))) is expected


def test_memory_is_found_behind_what_was_made_of_it() -> None:
    def fail() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("the weights cannot be read") from error

    with pytest.raises(ValueError) as caught:
        fail()
    assert oom_message(caught.value) == "MemoryError: "
    assert oom_message(ValueError("memory of an elephant")) is None


def test_a_peak_that_rises_is_told_at_once() -> None:
    told: list[tuple[int, int]] = []

    def tell(seconds: float, host: int, device: int, peak: int, _: int) -> None:
        told.append((host, peak))

    with Sampler("cpu", tell) as memory:
        memory.sample()
        before = len(told)
        held = hold(100 * MIB)
        memory.sample()
        assert len(told) > before
        # The sampler's own thread may since have read a few pages more.
        assert 0 <= memory.peak_host_bytes - told[-1][1] < MIB
        assert told[-1][1] - told[0][1] > 90 * MIB
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
    assert not deadlock_watchdog.all_wait()
    os.write(sink, b"x")
    reader.join()
    os.close(source)
    os.close(sink)
