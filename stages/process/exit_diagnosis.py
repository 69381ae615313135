"""Finds out why a stage's process failed, from its exit status, its last output and the kernel's
count of kills."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from artifacts import errors
from artifacts.model_files import ModelFiles
from artifacts.pack_object import DamagedRecord
from stages.process.events import StageError
from stages.process.memory_limit import AT_THE_LIMIT, is_near, short
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


def device_advice(message: str) -> str:
    """Return what to do about a GPU that failed with these words. Empty when they are of something
    else."""
    return next((advice for sign, advice in ADVICE.items() if sign in message), "")


STOPPING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which people and kernels stop a process; others are its own fault and come again."""
CRASHING = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals by which a library in C ends the process that called it."""
OOM_SIGNS = (
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
POSSIBLE_OOM_SIGNS = (
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
KILLED_EXIT_STATUS = 128 + signal.SIGKILL
"""Exit status by which a shell, or a container, tells that what it started was killed."""
LAST_LINES = 5
"""Lines at a log's end in which the reason stands when a library ended the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessExit:
    """The known facts of a process that ended without success."""

    code: int
    """Its exit status; below zero, the signal."""
    error_event: StageError | None = None
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
        return signal.SIGKILL if self.code == KILLED_EXIT_STATUS else max(0, -self.code)

    @property
    def short(self) -> bool:
        """Return whether memory was so short that something may not have been given. It may have
        been short for the process, or for the kernel."""
        return self.oom_kills > 0 or (self.budget > 0 and is_near(self.peak_bytes, self.budget))

    @property
    def at_the_limit(self) -> bool:
        """Return whether it had all that it was allowed, or the kernel had no more."""
        return self.oom_kills > 0 or 0 < self.budget * AT_THE_LIMIT <= self.peak_bytes


def out_of_memory(error: BaseException) -> bool:
    """Return whether the machine is at fault: libraries have many words for it, and no class in
    common."""
    return oom_message(error) is not None


def oom_message(error: BaseException) -> str | None:
    """Return what was said, first of all, of memory that was not given. None when nothing was."""
    for cause in reversed(list(causes(error))):
        message = f"{type(cause).__name__}: {first_line(cause)}"
        if is_oom_message(message) or (may_be_oom_message(message) and short()):
            return message
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


def is_oom_message(message: str) -> bool:
    """Return whether these last words are those of somebody who got no memory."""
    return any(sign in message for sign in OOM_SIGNS)


def may_be_oom_message(message: str) -> bool:
    """Return whether these may be the last words of somebody who got no memory."""
    return any(sign in message for sign in POSSIBLE_OOM_SIGNS)


def fault_of_stage(name: str, process_exit: ProcessExit) -> errors.PenstockError:
    """Return the error that a stage's end amounts to. Where another model was put in the place of
    its own, it is that, whatever the libraries died of."""
    error_event = process_exit.error_event or StageError()
    if process_exit.signal not in STOPPING and (changed := process_exit.files.changed()):
        return changed
    last_message = (
        f"{error_event.type}: {error_event.message}"
        if error_event.type
        else "".join(process_exit.last_lines[-1:])
    )
    known = _ours(error_event.type)
    if _of_memory(process_exit, error_event, last_message, is_own_error=known is not None):
        return _out_of_memory(name, process_exit, last_message)
    if known is not None:
        if issubclass(known, errors.MediaError):
            return errors.MediaError(error_event.message, kind="media", hint=error_event.hint)
        return known(error_event.message, hint=error_event.hint)
    if process_exit.signal in STOPPING:
        message = f"the {name} stage was ended by {signal_name(process_exit.signal)}"
        hint = "Nothing finished is lost; run the same command again to go on"
        if process_exit.signal == signal.SIGKILL:
            return errors.Killed(message, hint=hint, items=process_exit.items)
        return errors.Interrupted(message, hint=hint)
    ended = (
        signal_name(process_exit.signal)
        if process_exit.signal
        else f"exit status {process_exit.code}"
    )
    advice = device_advice("\n".join([last_message, *process_exit.last_lines]))
    return errors.StageDied(
        f"the {name} stage failed: {last_message or ended}",
        hint=advice or f"Its log is {process_exit.log}; what is finished stays done",
        return_code=process_exit.code,
    )


def _ours(name: str) -> type[errors.PenstockError] | None:
    """Return the error of this program that is called so."""
    known = {**vars(errors), "DamagedRecord": DamagedRecord}.get(name)
    return known if isinstance(known, type) and issubclass(known, errors.PenstockError) else None


def _of_memory(
    process_exit: ProcessExit, error_event: StageError, last_message: str, *, is_own_error: bool
) -> bool:
    """Return whether the process ran out of memory. `is_own_error`: the error is one of this
    program's classes, so its message is taken at its word."""
    messages = [last_message] if error_event.type else [last_message, *process_exit.last_lines]
    if any(map(is_oom_message, messages)) or process_exit.signal == signal.SIGALRM:
        return True  # the clock runs only where memory is short: see deadlock_watchdog.py
    if not is_own_error and any(map(may_be_oom_message, messages)):
        return process_exit.short
    crashed = not error_event.type and process_exit.signal in (signal.SIGKILL, *CRASHING)
    return crashed and process_exit.at_the_limit


def _out_of_memory(name: str, process_exit: ProcessExit, last_message: str) -> errors.OutOfMemory:
    message = last_message.removeprefix("OutOfMemory: ")
    if process_exit.signal and not is_oom_message(message):
        by_kernel = process_exit.oom_kills > 0 and process_exit.signal == signal.SIGKILL
        message = "the kernel killed it" if by_kernel else signal_name(process_exit.signal)
    took = f" at {process_exit.peak_bytes >> 20} MiB" if process_exit.peak_bytes > 0 else ""
    of = f" of {process_exit.budget >> 20} MiB" if took and process_exit.budget else ""
    return errors.OutOfMemory(
        f"the {name} stage ran out of memory{took}{of} ({message[:160]})",
        hint="Nothing finished is lost; run it again with a smaller --batch-size",
        items=process_exit.items,
        peak_bytes=process_exit.peak_bytes,
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
