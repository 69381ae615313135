"""What ended a stage's process, told by its exit status and last words; knows no stage by name."""

import signal
from collections.abc import Mapping
from pathlib import Path

from artifacts import errors
from artifacts.packs import DamagedRecord

STOPPING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which people and kernels stop a process; others are its own fault and come again."""
CRASHING = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals by which a library in C ends the process that called it."""
OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "Unable to allocate",
    "MemoryError",
)
"""How an out-of-memory death reads in a stage's last words (torch, cuBLAS, the CPU allocator,
NumPy, Python)."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine is at fault: libraries have many words for it, and no class in common."""
    return says_out_of_memory(f"{type(error).__name__}: {error}")


def says_out_of_memory(words: str) -> bool:
    """Whether these last words are those of somebody who got no memory."""
    return any(sign in words for sign in OUT_OF_MEMORY)


def fault_of_stage(
    name: str,
    code: int,
    told: Mapping[str, str] | None,
    log_tail: str,
    log: Path,
    items: int = 0,
) -> errors.PenstockError:
    """The error that a stage's end amounts to.

    `told` is the error event that the child sent, if it could; `log_tail` the last line of its log;
    `items` what it had published.
    """
    told = told or {"type": "", "message": "", "hint": ""}
    known = {**vars(errors), "DamagedRecord": DamagedRecord}.get(told["type"])
    if isinstance(known, type) and issubclass(known, errors.PenstockError):
        if issubclass(known, errors.MediaError):
            return errors.MediaError(told["message"], kind="media", hint=told["hint"])
        return known(told["message"], hint=told["hint"])
    last_words = f"{told['type']}: {told['message']}" if told["type"] else log_tail
    if says_out_of_memory(last_words):
        return errors.CannotFit(
            f"the {name} stage ran out of memory ({last_words[:160]})",
            hint="Nothing finished is lost; run it again with a smaller --batch-size",
        )
    if -code in STOPPING:
        message = f"the {name} stage was ended by {signal_name(-code)}"
        hint = "Nothing finished is lost; run the same command again to go on"
        if -code == signal.SIGKILL:
            return errors.Killed(message, hint=hint, items=items)
        return errors.Interrupted(message, hint=hint)
    ended = signal_name(-code) if code < 0 else f"exit status {code}"
    return errors.StageDied(
        f"the {name} stage failed: {last_words or ended}",
        hint=f"Its log is {log}; what is finished stays done",
        return_code=code,
    )


def is_crash(error: BaseException) -> bool:
    """Whether a stage died in a library, of what it was reading, and not of the machine."""
    return isinstance(error, errors.StageDied) and -(error.return_code or 0) in CRASHING


def signal_name(number: int) -> str:
    """`signal 9 (SIGKILL)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
