"""The child's side of a stage: `python -m stages.process.child JOB PARENT_PID EVENTS_FD`; knows no
stage by name."""

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.errors import PenstockError
from stages.process.lock import hold_device
from stages.process.memory import Sampler, anonymous_bytes
from stages.process.report import Report

PR_SET_PDEATHSIG = 1
ORPHAN_CHECK_SECONDS = 0.5


def die_with(parent: int) -> None:
    """Be killed when the parent is, so that no orphan keeps the GPU; exits at once if it is gone
    already.

    The kernel's signal is tied to the thread that made this process, so the parent is looked at as
    well.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def main(job_path: str, parent: str, events: str) -> int:
    """Run the stage that the job file names; every outcome is told on the events descriptor."""
    die_with(int(parent))
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    Path(job_path).unlink(missing_ok=True)  # a parent that is killed cannot
    report = Report(int(events), Path(job["journal"]))
    lock = hold_device(
        job["device"], lambda who: report.warning(f"waiting for the GPU, {who} has it")
    )
    started = time.monotonic()
    code = 0
    with Sampler(job["device"], report.memory) as memory:
        try:
            entry = load_entry(job["entry"])
            report.note(loaded_bytes=anonymous_bytes(), import_seconds=time.monotonic() - started)
            entry(job["arguments"], report)
        except BaseException as error:
            report.send("error", **describe(error))
            traceback.print_exc()
            code = 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    report.send(
        "end",
        peak_host_bytes=memory.peak_host_bytes,
        peak_device_bytes=memory.peak_device_bytes,
        seconds=time.monotonic() - started,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        timeline=memory.timeline,
    )
    if lock is not None:
        lock.close()
    return code


def load_entry(name: str) -> Callable[[dict[str, Any], Report], None]:
    """The stage's function from `package.module:function`."""
    module, _, function = name.partition(":")
    loaded: Callable[[dict[str, Any], Report], None] = getattr(
        importlib.import_module(module), function
    )
    return loaded


def describe(error: BaseException) -> dict[str, str]:
    """An error as the parent will tell it: our own in their words, others by class and first
    line."""
    if isinstance(error, PenstockError):
        return {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    if isinstance(error, OSError) and error.strerror:
        first = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return {"type": type(error).__name__, "message": first, "hint": ""}


if __name__ == "__main__":
    # Without the interpreter's long farewell: the driver takes the memory back faster than
    # finalizers do.
    exit_code = main(*sys.argv[1:4])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
