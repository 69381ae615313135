"""Finds out why a stage's process failed, from its exit status, its last output and the kernel's
count of kills."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from artifacts import errors
from artifacts.model_files import ModelFiles
from artifacts.pack_object import DamagedRecord
from stages.process.budget import AT_THE_LIMIT, near, short
from stages.process.events import StageError
from stages.process.nvml import TO_THE_CPU

LOST = (
    "See `dmesg | grep -i xid` and `nvidia-smi`, restart the machine if that does not answer, and "
    "run the same command again: nothing finished is lost"
)
NEWER = f"Update the NVIDIA driver, or install the torch that was built for it; {TO_THE_CPU}"
OLDER_TORCH = (
    "This torch has no kernels for a GPU of its age: install one that was built for it, or name "
    f"another GPU; {TO_THE_CPU}"
)
TAKEN = "Another process has the GPU for itself: see `nvidia-smi`, and run the same command again"

ADVICE = {
    "driver on your system is too old": NEWER,
    "driver version is insufficient": NEWER,
    "no kernel image is available": OLDER_TORCH,
    "busy or unavailable": TAKEN,
    "GPU is lost": LOST,
    "unspecified launch failure": LOST,
    "uncorrectable ECC error": LOST,
    "unrecoverable error": LOST,
    "NVIDIA driver was terminated": LOST,
    "CUDA driver error": LOST,
    "CUDA error: unknown error": LOST,
}
"""Sign in the last words → what to do. They are torch's, of the runtime's errors."""


def device_advice(words: str) -> str:
    """Return what to do about a GPU that failed with these words. Empty when they are of something
    else."""
    return next((advice for sign, advice in ADVICE.items() if sign in words), "")


STOPPING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which people and kernels stop a process; others are its own fault and come again."""
CRASHING = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals by which a library in C ends the process that called it."""
OUT_OF_MEMORY = (
    # torch: its CUDA allocator (its class is OutOfMemoryError), the runtime, the driver
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "OutOfMemory",
    "cudaErrorMemoryAllocation",
    # bitsandbytes, which then leaves with status 1
    "Error out of memory at line",
    # cuBLAS, cuDNN, cuSPARSE, cuSOLVER
    "STATUS_ALLOC_FAILED",
    "not enough workspace",
    # ONNX Runtime
    "Failed to allocate memory for requested buffer",
    "CUDA failure 2: out of memory",
    # the CPU allocator, and what it passes on of the kernel
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",
    # Pillow, NumPy, Python, C++
    "out of memory when reading",
    "Unable to allocate",
    "MemoryError",
    "std::bad_alloc",
    # Rust, of safetensors and tokenizers, which then aborts
    "memory allocation of",
)
"""Words by which an out-of-memory death is known in a stage's last words."""
PERHAPS_OUT_OF_MEMORY = (
    # oneDNN
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
    # threads, whose stacks are memory: C, OpenMP, Python
    "Resource temporarily unavailable",
    "Thread creation failed",
    "can't start new thread",
    # Rust, of an object of Python that it did not get
    "PyObject pointer is null",
    # cuBLAS and cuDNN, of their handles, and of a convolution without room to work in
    "STATUS_NOT_INITIALIZED",
    "STATUS_INTERNAL_ERROR",
    "STATUS_EXECUTION_FAILED",
    "unable to find an engine to execute this computation",
    "nable to find a valid cuDNN algorithm",
    "no valid convolution algorithms available",
    # the driver, of host memory that it was to pin
    "OS call failed or operation not supported on this OS",
)
"""Words that are also said for other reasons: they count only where memory was short."""
KILLED_STATUS = 128 + signal.SIGKILL
"""Exit status by which a shell, or a container, tells that what it started was killed."""
LAST_LINES = 5
"""Lines at a log's end in which the reason stands when a library ended the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessExit:
    """The known facts of a process that ended without success."""

    code: int
    """Its exit status; below zero, the signal."""
    told: StageError | None = None
    """The error event that it sent, if it could."""
    log: Path
    last_lines: tuple[str, ...] = ()
    """Last lines of its log."""
    items: int = 0
    """Number of items that it had published."""
    peak_bytes: int = 0
    """The most bytes that it was seen to take, above what its imports take."""
    budget: int = 0
    """Bytes that it was allowed; 0: all there was."""
    oom_kills: int = 0
    """Processes of its group that the kernel killed meanwhile for want of memory."""
    files: ModelFiles = field(default_factory=ModelFiles)
    """Files of its model, as they were when it was planned."""

    @property
    def signal(self) -> int:
        """Return the signal that ended it; 0 when none did."""
        return signal.SIGKILL if self.code == KILLED_STATUS else max(0, -self.code)

    @property
    def short(self) -> bool:
        """Return whether memory was so short that something may not have been given. It may have
        been short for the process, or for the kernel."""
        return self.oom_kills > 0 or (self.budget > 0 and near(self.peak_bytes, self.budget))

    @property
    def at_the_limit(self) -> bool:
        """Return whether it had all that it was allowed, or the kernel had no more."""
        return self.oom_kills > 0 or 0 < self.budget * AT_THE_LIMIT <= self.peak_bytes


def out_of_memory(error: BaseException) -> bool:
    """Return whether the machine is at fault: libraries have many words for it, and no class in
    common."""
    return memory_words(error) is not None


def memory_words(error: BaseException) -> str | None:
    """Return what was said, first of all, of memory that was not given. None when nothing was."""
    for cause in reversed(list(causes(error))):
        words = f"{type(cause).__name__}: {first_line(cause)}"
        if says_out_of_memory(words) or (perhaps(words) and short()):
            return words
    return None


def first_line(error: BaseException) -> str:
    """Return an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = str(error).strip().splitlines()
    return text[0] if text else ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on."""
    seen: set[int] = set()
    while id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__ or error


def says_out_of_memory(words: str) -> bool:
    """Return whether these last words are those of somebody who got no memory."""
    return any(sign in words for sign in OUT_OF_MEMORY)


def perhaps(words: str) -> bool:
    """Return whether these may be the last words of somebody who got no memory."""
    return any(sign in words for sign in PERHAPS_OUT_OF_MEMORY)


def fault_of_stage(name: str, ending: ProcessExit) -> errors.PenstockError:
    """Return the error that a stage's end amounts to. Where another model was put in the place of
    its own, it is that, whatever the libraries died of."""
    told = ending.told or StageError()
    if ending.signal not in STOPPING and (changed := ending.files.changed()):
        return changed
    last_words = f"{told.type}: {told.message}" if told.type else "".join(ending.last_lines[-1:])
    known = _ours(told.type)
    if _of_memory(ending, told, last_words, ours=known is not None):
        return _out_of_memory(name, ending, last_words)
    if known is not None:
        if issubclass(known, errors.MediaError):
            return errors.MediaError(told.message, kind="media", hint=told.hint)
        return known(told.message, hint=told.hint)
    if ending.signal in STOPPING:
        message = f"the {name} stage was ended by {signal_name(ending.signal)}"
        hint = "Nothing finished is lost; run the same command again to go on"
        if ending.signal == signal.SIGKILL:
            return errors.Killed(message, hint=hint, items=ending.items)
        return errors.Interrupted(message, hint=hint)
    ended = signal_name(ending.signal) if ending.signal else f"exit status {ending.code}"
    advice = device_advice("\n".join([last_words, *ending.last_lines]))
    return errors.StageDied(
        f"the {name} stage failed: {last_words or ended}",
        hint=advice or f"Its log is {ending.log}; what is finished stays done",
        return_code=ending.code,
    )


def _ours(name: str) -> type[errors.PenstockError] | None:
    """Return the error of this program that is called so."""
    known = {**vars(errors), "DamagedRecord": DamagedRecord}.get(name)
    return known if isinstance(known, type) and issubclass(known, errors.PenstockError) else None


def _of_memory(ending: ProcessExit, told: StageError, last_words: str, *, ours: bool) -> bool:
    """Return whether it was its memory that it died of. `ours` is whether the error is one of this
    program, which are never in doubt."""
    words = [last_words] if told.type else [last_words, *ending.last_lines]
    if any(map(says_out_of_memory, words)) or ending.signal == signal.SIGALRM:
        return True  # the clock runs only where memory is short: see deadlock_watchdog.py
    if not ours and any(map(perhaps, words)):
        return ending.short
    crashed = not told.type and ending.signal in (signal.SIGKILL, *CRASHING)
    return crashed and ending.at_the_limit


def _out_of_memory(name: str, ending: ProcessExit, last_words: str) -> errors.OutOfMemory:
    words = last_words.removeprefix("OutOfMemory: ")
    if ending.signal and not says_out_of_memory(words):
        by_kernel = ending.oom_kills > 0 and ending.signal == signal.SIGKILL
        words = "the kernel killed it" if by_kernel else signal_name(ending.signal)
    took = f" at {ending.peak_bytes >> 20} MiB" if ending.peak_bytes > 0 else ""
    of = f" of {ending.budget >> 20} MiB" if took and ending.budget else ""
    return errors.OutOfMemory(
        f"the {name} stage ran out of memory{took}{of} ({words[:160]})",
        hint="Nothing finished is lost; run it again with a smaller --batch-size",
        items=ending.items,
        peak_bytes=ending.peak_bytes,
    )


def is_crash(error: BaseException) -> bool:
    """Return whether a stage died in a library, of what it was reading, and not of the machine."""
    return isinstance(error, errors.StageDied) and -(error.return_code or 0) in CRASHING


def signal_name(number: int) -> str:
    """Return a signal's number and name: `signal 9 (SIGKILL)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
