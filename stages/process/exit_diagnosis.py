"""Finds out why a stage's process failed, from its exit status, its last output and the kernel's
count of kills."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from artifacts import errors
from artifacts.records.model_files import ModelFiles
from artifacts.records.packs import DamagedRecord
from stages.process.device import USE_CPU_HINT
from stages.process.events import StageError
from stages.process.memory_limit import LIMIT_SHARE, is_near, memory_was_short

LOST = (
    "See `dmesg | grep -i xid` and `nvidia-smi`, restart the machine if that does not answer, and "
    "run the same command again: finished work is kept"
)
NEWER = f"Update the NVIDIA driver, or install a torch that was built for it; {USE_CPU_HINT}"
OLDER_TORCH = (
    "This torch has no kernels for this GPU: install a torch that was built for it, or choose "
    f"another GPU; {USE_CPU_HINT}"
)
TAKEN = (
    "Another process uses the GPU exclusively: see `nvidia-smi`, then run the same command again"
)

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
"""Text in an error message of the CUDA runtime, as torch reports it → what to do."""


def log_tail(log: Path, start: int) -> tuple[str, ...]:
    """Return the last lines of a log from a place on. Of a C++ exception the message, behind which
    its stack stands, comes last."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode("utf-8", errors="replace").strip("\n").splitlines()
    except OSError:
        return ()
    thrown = [line for line in lines if line.startswith(THROWN)][-1:]
    return (*lines[-LAST_LINES:], *(line.removeprefix(THROWN).strip() for line in thrown))


def device_advice(message: str) -> str:
    """Return what to do about a GPU error with this message; empty for other errors."""
    return next((advice for sign, advice in ADVICE.items() if sign in message), "")


STOPPING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which users and kernels stop a process. Other signals are caused by the process itself
and recur."""
CRASHING = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals by which a C library ends the process that called it."""
OOM_SIGNS = (
    # torch: its CUDA allocator (its class is OutOfMemoryError), the runtime, the driver
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "OutOfMemory",
    "cudaErrorMemoryAllocation",
    # torch, for memory that others allocate: cuDNN's attention, Triton, CUDA graphs
    "CUDA ran out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "Triton Error [CUDA]: out of memory",
    "failed: out of memory",
    # bitsandbytes, which then exits with status 1
    "Error out of memory at line",
    # cuBLAS, cuDNN, cuSPARSE, cuSOLVER
    "STATUS_ALLOC_FAILED",
    "not enough workspace",
    # ONNX Runtime
    "Failed to allocate memory for requested buffer",
    "CUDA failure 2: out of memory",
    # the CPU allocator, and the kernel errors that it passes on
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
"""Texts in error messages that always mean out of memory."""
POSSIBLE_OOM_SIGNS = (
    # oneDNN
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
    # threads, whose stacks are memory: C, OpenMP, Python
    "Resource temporarily unavailable",
    "Thread creation failed",
    "can't start new thread",
    # Rust: a Python object could not be allocated
    "PyObject pointer is null",
    # cuBLAS and cuDNN: handles, and a convolution without workspace
    "STATUS_NOT_INITIALIZED",
    "STATUS_INTERNAL_ERROR",
    "STATUS_EXECUTION_FAILED",
    "unable to find an engine to execute this computation",
    "nable to find a valid cuDNN algorithm",
    "no valid convolution algorithms available",
    # the driver: pinned host memory
    "OS call failed or operation not supported on this OS",
)
"""Texts in error messages that may have other causes. They count only if memory was short."""
UNSEEN_BYTES = 64 << 20
"""Memory that libraries may ask for, and crash without, between two samples of what a process
takes. They did so 24 to 33 MiB below limits of 44 to 55 MiB."""
KILLED_EXIT_STATUS = 128 + signal.SIGKILL
"""Exit status by which a shell or a container reports that its process was killed."""
LAST_LINES = 5
"""Lines at the end of a log that hold the reason if a library ended the process."""
THROWN = "  what():"
"""What stands before the message of an exception that ends a C++ program."""
LIBRARY_SETTINGS = ("PYTORCH_", "TORCH", "HF_HUB_", "TRANSFORMERS_", "BNB_", "CUDA_", "CUBLAS_")
"""Beginnings of the names of environment variables that libraries read while they are imported."""
SWITCHES = ("", "0", "1", "true", "false", "yes", "no", "on", "off")
"""Values with which such a variable fails no import: HF_HUB_OFFLINE=1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessExit:
    """The known facts of a process that failed."""

    code: int
    """Exit status; a negative number is a signal."""
    error_event: StageError | None = None
    """The error event that it sent, if any."""
    log: Path
    last_lines: tuple[str, ...] = ()
    """Last lines of its log."""
    items: int = 0
    """Number of items that it published."""
    peak_bytes: int = 0
    """Observed peak memory above what the imports take."""
    budget: int = 0
    """Memory limit in bytes; 0: no limit."""
    oom_kills: int = 0
    """Processes of its group that the kernel killed for lack of memory while it ran."""
    files: ModelFiles = field(default_factory=ModelFiles)
    """Files of its model as they were when the job was planned."""

    @property
    def signal(self) -> int:
        """Return the signal that ended the process; 0 if none did."""
        return signal.SIGKILL if self.code == KILLED_EXIT_STATUS else max(0, -self.code)

    @property
    def short(self) -> bool:
        """Return whether memory was so short, for the process or the kernel, that an allocation may
        have failed."""
        return self.oom_kills > 0 or (self.budget > 0 and is_near(self.peak_bytes, self.budget))

    @property
    def at_the_limit(self) -> bool:
        """Return whether the process used up its limit, or the kernel ran out of memory."""
        least = self.budget * LIMIT_SHARE
        if self.signal in CRASHING:
            least = min(least, self.budget - UNSEEN_BYTES)
        return self.oom_kills > 0 or (self.budget > 0 and least <= self.peak_bytes)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory. Libraries share neither a message nor a class
    for it."""
    return oom_message(error) is not None


def oom_message(error: BaseException) -> str | None:
    """Return the message of the first cause of an error that means out of memory; None if there is
    none."""
    for cause in reversed(list(causes(error))):
        message = f"{type(cause).__name__}: {first_line(cause)}".removesuffix(": ")
        if is_oom_message(message) or (may_be_oom_message(message) and memory_was_short()):
            return message
    return None


def first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = str(error).strip().splitlines()
    return text[0] if text else ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on."""
    seen: set[int] = set()
    while id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__ or error


def is_oom_message(message: str) -> bool:
    """Return whether this error message always means out of memory."""
    return any(sign in message for sign in OOM_SIGNS)


def may_be_oom_message(message: str) -> bool:
    """Return whether this error message may mean out of memory."""
    return any(sign in message for sign in POSSIBLE_OOM_SIGNS)


def fault_of_stage(name: str, process_exit: ProcessExit) -> errors.PenstockError:
    """Return the error for a stage's failed process. If the model's files were replaced meanwhile,
    the error is about that, whatever a library reported."""
    error_event = process_exit.error_event or StageError()
    if process_exit.signal not in STOPPING and (changed := process_exit.files.changed()):
        return changed
    last_line = "".join(process_exit.last_lines[-1:])
    if last_line.startswith(" "):  # the code that Python prints below a warning
        last_line = ""
    last_message = f"{error_event.type}: {error_event.message}" if error_event.type else last_line
    known = _ours(error_event.type)
    if _is_oom(process_exit, error_event, last_message, is_own_error=known is not None):
        return _out_of_memory(name, process_exit, last_message)
    if known is not None:
        if issubclass(known, errors.MediaError):
            return errors.MediaError(error_event.message, kind="media", hint=error_event.hint)
        return known(error_event.message, hint=error_event.hint)
    if process_exit.signal in STOPPING:
        message = f"the {name} stage was stopped by {signal_name(process_exit.signal)}"
        hint = "Finished work is kept; run the same command again to resume"
        if process_exit.signal == signal.SIGKILL:
            return errors.Killed(message, hint=hint, items=process_exit.items)
        return errors.Interrupted(message, hint=hint)
    ended = (
        signal_name(process_exit.signal)
        if process_exit.signal
        else f"exit status {process_exit.code}"
    )
    advice = device_advice("\n".join([last_message, *process_exit.last_lines]))
    settings = [
        name
        for name, value in sorted(os.environ.items())
        if name.startswith(LIBRARY_SETTINGS) and value.lower() not in SWITCHES
    ]
    if settings and not process_exit.items:
        advice = advice or (
            f"See its log {process_exit.log}. Its libraries read {', '.join(settings)}: unset what "
            "you do not need"
        )
    return errors.StageDied(
        f"the {name} stage failed: {last_message or ended}",
        hint=advice or f"See its log {process_exit.log}; finished work is kept",
        return_code=process_exit.code,
    )


def _ours(name: str) -> type[errors.PenstockError] | None:
    """Return the error class of this program with that name; None if there is none."""
    known = {**vars(errors), "DamagedRecord": DamagedRecord}.get(name)
    return known if isinstance(known, type) and issubclass(known, errors.PenstockError) else None


def _is_oom(
    process_exit: ProcessExit, error_event: StageError, last_message: str, *, is_own_error: bool
) -> bool:
    """Return whether the process ran out of memory. `is_own_error`: the error is one of this
    program's classes, so its message is taken at its word."""
    messages = [last_message] if error_event.type else [last_message, *process_exit.last_lines]
    if any(map(is_oom_message, messages)) or process_exit.signal == signal.SIGALRM:
        return True  # the timer runs only if memory is short (memory_limit.py)
    if not is_own_error and any(map(may_be_oom_message, messages)):
        return process_exit.short
    crashed = not error_event.type and process_exit.signal in (signal.SIGKILL, *CRASHING)
    return crashed and process_exit.at_the_limit


def _out_of_memory(name: str, process_exit: ProcessExit, last_message: str) -> errors.OutOfMemory:
    message = last_message.removeprefix("OutOfMemory: ")
    if process_exit.signal and not is_oom_message(message):
        by_kernel = process_exit.oom_kills > 0 and process_exit.signal == signal.SIGKILL
        message = "the kernel killed it" if by_kernel else signal_name(process_exit.signal)
    peak = f" at {process_exit.peak_bytes >> 20} MiB" if process_exit.peak_bytes > 0 else ""
    of = f" of {process_exit.budget >> 20} MiB" if peak and process_exit.budget else ""
    return errors.OutOfMemory(
        f"the {name} stage ran out of memory{peak}{of} ({message[:160]})",
        hint="Finished work is kept; run it again with a smaller --batch-size",
        items=process_exit.items,
        peak_bytes=process_exit.peak_bytes,
    )


def is_crash(error: BaseException) -> bool:
    """Return whether a stage crashed in a C library, which suggests that its input is at fault."""
    return isinstance(error, errors.StageDied) and -(error.return_code or 0) in CRASHING


def signal_name(number: int) -> str:
    """Return a signal's number and name: `signal 9 (SIGKILL)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
