"""The worker process of a stage: `python -m stages.process.child JOB_FD PARENT_PID EVENTS_FD`.

How it works:

1. It reads its job, a JSON document, from a file descriptor. A worker that was forked by the fork
   server begins at `run_job`.
2. It ties its life to the parent's. The kernel kills it when the parent dies, and a thread checks
   the parent's process id every half second.
3. It takes the lock of the job's device, and sends a warning while another process holds it. One
   that computes beside others takes no lock: its parent holds it.
4. A sampling thread reports memory use. When no thread makes progress and memory is short, it sends
   an out-of-memory event and exits.
5. It imports the function that the job names. A module's `warm` function imports what this job will
   need.
6. It limits its own memory to the job's budget, counted above what the imports took.
7. It calls the function with the job's arguments and the event reporter. An error is sent as one
   event, and the exit status is 1. An error at the memory limit is sent as out of memory.
8. It sends peak memory, times and the timeline. Then it exits without finalizers, because the
   driver frees GPU memory faster than they do.
"""

import ctypes
import gc
import importlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from artifacts.errors import CannotFit, PenstockError
from artifacts.packages import missing_package
from stages.process import memory_limit
from stages.process.deferred_imports import defer
from stages.process.device import hold_device
from stages.process.events import WAITS_FOR_DEVICE, EventReporter, StageEnded, StageError
from stages.process.exit_diagnosis import first_line, oom_message
from stages.process.job import JobFields, ProcessJob, gc_frozen, read_job, value_in
from stages.process.memory import ProcessMemory, Sampler, anonymous_bytes
from stages.process.output_streams import lasting_output

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
ORPHAN_CHECK_SECONDS = 0.5
STUCK = StageError(
    type="OutOfMemory",
    message="no thread makes progress: a library waits for memory that could not be allocated",
)
"""Event that is sent for a process that would wait forever."""


def die_with(parent: int) -> None:
    """Die with the parent, so that no orphan keeps the GPU. Exit at once if the parent is gone.

    The kernel's signal depends on the thread that started this process, so a thread also polls
    the parent's process id.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

    never = threading.Event()  # unlike a sleep, this wait does not count as progress

    def watch() -> None:
        while os.getppid() == parent:
            never.wait(ORPHAN_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


class ParentInfo(NamedTuple):
    """The parent process of a stage, and the time that it spent importing for it."""

    parent: int
    """Process with which this one ends; 0: it sees to that itself."""
    seconds: float = 0.0
    """Time that the parent spent on imports for the stage."""
    cpu_seconds: float = 0.0
    """Processor time of these imports; negative: of earlier stages of this process."""


def main(job: str, parent: str, events: str) -> int:
    """Run the stage whose job is read from a descriptor, and return its exit status."""
    with lasting_output():
        return run_job(read_job(int(job)), ParentInfo(int(parent)), int(events))


def run_job(job: ProcessJob, origin: ParentInfo, events: int) -> int:
    """Run the stage of a job and report on the events descriptor. Return the exit status."""
    if origin.parent:
        die_with(origin.parent)
    ctypes.CDLL(None).prctl(PR_SET_NAME, job["name"][:15].encode())  # as `ps` and `top` show it
    journal = Path(job["journal"]) if job["journal"] else None
    report = EventReporter(events, journal, job["device"])
    # A stage without a device runs no model, so it need not wait for the lock.
    runs_on = "" if job["beside"] else str(value_in(job["arguments"], "device") or "")
    has_waited = False

    def on_wait(holder: str) -> None:
        nonlocal has_waited
        has_waited = True
        report.warning(f"waiting for {runs_on.upper()}, held by {holder}")
        report.note(**{WAITS_FOR_DEVICE: True})

    try:
        lock = hold_device(runs_on, on_wait)
    except (PenstockError, OSError) as error:
        report.send(describe(error))
        return 1
    if has_waited:
        report.note(**{WAITS_FOR_DEVICE: False})
    code = work(job, report, origin)
    if lock is not None:
        lock.close()
    return code


def work(job: ProcessJob, report: EventReporter, origin: ParentInfo) -> int:
    """Run the stage, with its device locked, and return the exit status."""
    started = time.monotonic() - origin.seconds
    code = 0
    still = memory_limit.DeadlockDetector()

    def watch(now: ProcessMemory) -> None:
        is_still, is_short = still.is_stuck(), memory_limit.update(now)
        if is_short:
            memory_limit.rearm_alarm()
        if is_still and is_short:
            memory_limit.lift()
            report.send(STUCK)
            os._exit(1)

    sampler = Sampler(job["device"], report.send, watch, own=job["beside"], started=started)
    with sampler as memory:
        try:
            with gc_frozen():
                entry = load_entry(job["entry"], job["arguments"])
                gc.freeze()  # exclude these objects from later collections, too
            dtype = str(value_in(job["arguments"], "dtype") or "")
            memory_limit.enforce(job["device"], (job["budget"] or {"bytes": 0})["bytes"], dtype)
            report.note(loaded_bytes=anonymous_bytes(), import_seconds=time.monotonic() - started)
            entry(job["arguments"], report)
        except BaseException as error:
            memory_limit.lift()
            report.send(describe(error))
            traceback.print_exc()
            code = 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    report.send(
        StageEnded(
            peak_host_bytes=memory.peak_host_bytes,
            peak_device_bytes=memory.peak_device_bytes,
            seconds=time.monotonic() - started - report.idle.seconds,
            cpu_seconds=origin.cpu_seconds + usage.ru_utime + usage.ru_stime,
            timeline=memory.timeline,
        )
    )
    return code


def load_entry(name: str, arguments: JobFields) -> Callable[[JobFields, EventReporter], None]:
    """Return the stage's function from `package.module:function`. If the module has a function
    `warm`, that is called first. It imports what the job will need, so that these imports do not
    count towards the stage's memory."""
    defer()
    module_name, _, function = name.partition(":")
    module = importlib.import_module(module_name)
    loaded: Callable[[JobFields, EventReporter], None] = getattr(module, function)
    if warm := getattr(module, "warm", None):
        warm(arguments)
    return loaded


def describe(error: BaseException) -> StageError:
    """Return the event for an error. This program's errors keep their message; of others, class
    and first line remain."""
    if (message := oom_message(error)) is not None:  # even if another error wraps it
        own = error.message if isinstance(error, CannotFit) else message
        return StageError(type="OutOfMemory", message=own)
    error = missing_package(error, "this stage") or error
    if isinstance(error, PenstockError):
        return StageError(type=type(error).__name__, message=error.message, hint=error.hint)
    if memory_limit.at_the_limit() and isinstance(error, Exception):
        # Out of memory inside a library may surface as any error, or without a message.
        message = f"{type(error).__name__}: {first_line(error)}"
        return StageError(type="OutOfMemory", message=message)
    return StageError(type=type(error).__name__, message=first_line(error))


if __name__ == "__main__":
    # Skip the interpreter's shutdown: the driver frees the memory faster than finalizers do.
    os._exit(main(*sys.argv[1:4]))
