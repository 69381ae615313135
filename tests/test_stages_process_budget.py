"""What a stage's process may take, and how its death of memory is told from other deaths: each in a
real process that really runs out."""

import ctypes
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import CannotFit, Killed, OutOfMemory, PenstockError, StageDied
from stages.process import budget, stuck
from stages.process.ending import Ending, fault_of_stage, memory_words
from stages.process.memory import Sampler, taken
from stages.process.report import Report
from stages.process.stage_process import StageProcess, child_environment

HERE = Path(__file__)
MIB = 1 << 20
BUDGET = 48 * MIB


# What the children of these tests run; each is named by its place in this file.
def warm(job: dict[str, Any]) -> None:
    if job.get("impatient"):
        stuck.STUCK_SECONDS, stuck.AGAIN_SECONDS = 0.5, 0.2
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
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "memory allocation of 73400320 bytes failed",
    ],
)
def test_words_of_a_death_of_memory_are_known_wherever_they_stand(words: str) -> None:
    told = {"type": "RuntimeError", "message": words, "hint": ""}
    for ending in (
        Ending(code=1, told=told, log=Path("log")),
        Ending(code=-6, log=Path("log"), last_lines=(words, "  what():  something", "Aborted")),
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
        ({"code": 1, "last_lines": ("libgomp: Thread creation failed: x",)}, StageDied),
        (
            {
                "code": 1,
                "last_lines": ("libgomp: Thread creation failed: x",),
                "peak_bytes": 600 * MIB,
                "budget": 1000 * MIB,
            },
            OutOfMemory,
        ),
    ],
)
def test_a_silent_death_is_of_memory_by_the_kernel_s_count_or_the_peak(
    ending: dict[str, Any], expected: type[PenstockError]
) -> None:
    assert type(fault_of_stage("decode", Ending(log=Path("log"), **ending))) is expected


def test_memory_is_found_behind_what_was_made_of_it() -> None:
    def fail() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("the weights cannot be read") from error

    with pytest.raises(ValueError) as caught:
        fail()
    assert memory_words(caught.value) == "MemoryError: "
    assert memory_words(ValueError("memory of an elephant")) is None


@contextmanager
def watched(told: list[tuple[int, int]]) -> Iterator[Sampler]:
    def tell(seconds: float, host: int, device: int, peak: int, _: int) -> None:
        told.append((host, peak))

    with Sampler("cpu", tell) as memory:
        yield memory


def test_a_peak_that_rises_is_told_at_once() -> None:
    told: list[tuple[int, int]] = []
    with watched(told) as memory:
        memory.look()
        before = len(told)
        held = hold(100 * MIB)
        memory.look()
        assert len(told) > before
        assert told[-1][1] == memory.peak_host_bytes
        assert told[-1][1] - told[0][1] > 90 * MIB
        del held


def test_what_a_process_may_write_to_counts_untouched() -> None:
    before = taken()
    held = mmap.mmap(-1, 100 * MIB, flags=mmap.MAP_PRIVATE)
    after = taken()
    held.close()
    assert after.data - before.data >= 100 * MIB
    assert after.anonymous - before.anonymous < 10 * MIB
    assert after.threads >= 1


def test_threads_that_wait_for_each_other_are_told_from_those_that_wait_for_a_disk() -> None:
    source, sink = os.pipe()
    reader = threading.Thread(target=os.read, args=(source, 1))
    reader.start()
    time.sleep(0.1)
    assert not stuck.all_wait()
    os.write(sink, b"x")
    reader.join()
    os.close(source)
    os.close(sink)


def test_a_user_s_own_settings_of_the_allocator_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    assert child_environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    assert "PYTORCH_ALLOC_CONF" not in child_environment()


def test_a_limit_is_lifted_for_the_last_words() -> None:
    limit = budget.Limit(bytes=100, baseline=taken(), lifted=True)
    limit.look(taken()._replace(threads=1000))  # sets nothing
    assert limit.most_threads == 0
    assert sys.getrecursionlimit() > 0
