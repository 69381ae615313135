"""The parent's side of a stage process. Makes no CUDA context.

How it works:

1. It starts `stages.process.child` as a process, or has the fork server fork one. The child reads
   its job from an in-memory file and takes the device's lock.
2. A thread reads the child's events from a pipe, one JSON line each. It adds them to the outcome
   and passes each to the listener. Output of libraries goes to the log.
3. When the process has ended, `wait` checks that its GPU memory was released and returns the
   outcome.
4. If the process failed, `wait` raises an error instead. The error is derived from the exit status,
   the last event, the log and the kernel's count of kills.
5. `stop` asks the process to end, and kills it when it does not.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING

from artifacts.disk.faults import disk_faults
from artifacts.disk.regular_files import open_below, refuse_links
from artifacts.errors import Killed
from artifacts.packages import require
from artifacts.records.model_files import ModelFiles
from stages.process.child_environment import ROOT, child_environment
from stages.process.cpu_limit import limit_cpu_time
from stages.process.device import device_free_bytes, device_holders, device_used_bytes, on_wsl
from stages.process.events import (
    Answered,
    Event,
    Failed,
    MediumClosed,
    MediumOpened,
    MemorySample,
    StageEnded,
    StageError,
    StageNotes,
    StageOutcome,
    TooLarge,
    Warned,
    answered_keys,
    event_of,
)
from stages.process.exit_diagnosis import ProcessExit, fault_of_stage, log_tail
from stages.process.fork_client import ForkServer, Process, StayingProcess
from stages.process.host_memory import oom_kills
from stages.process.job import job_descriptor, job_fields
from stages.process.memory import add_point

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SLACK_BYTES = 64 << 20
"""How far above its baseline a device may stay after a stage and still count as released."""
SECONDS = 5.0
"""How long to wait for the driver to release the memory."""
FULL = 0.97
"""Share of a GPU in use from which it counts as full."""


def wait_until_gone(device: str, pid: int) -> list[str]:
    """Wait until the driver no longer lists an exited process. Return warnings. Unlike
    `wait_for_release`, it ignores the memory of other processes."""
    deadline = time.monotonic() + SECONDS
    while (held := device_holders(device)).get(pid) is not None:
        if time.monotonic() >= deadline:
            return [
                f"GPU memory not released: exited process {pid} still holds {held[pid] >> 20} MiB"
            ]
        time.sleep(0.1)
    return []


def wait_for_release(device: str, before: int, peak: int) -> tuple[int, list[str]]:
    """Wait until a device uses no more memory than `before`, or time is up. Return its used bytes,
    and warnings. `peak` is the peak of its used bytes."""
    if not device.startswith("cuda"):
        return 0, []
    allowed = before + SLACK_BYTES
    deadline = time.monotonic() + SECONDS
    while (used := device_used_bytes(device)) > allowed and time.monotonic() < deadline:
        time.sleep(0.1)
    warnings = []
    if used > allowed:
        others = ", ".join(f"process {pid}" for pid in device_holders(device)) or "the driver"
        warnings.append(f"GPU memory not released: {(used - allowed) >> 20} MiB, held by {others}")
    total = device_free_bytes(device)[1]
    if total and peak > FULL * total and on_wsl():
        warnings.append(
            "the GPU was full; Windows then uses host memory, which is slow: lower "
            "--memory, or see WSL2 in docs/gpu.md"
        )
    return used, warnings


STOP_SECONDS = 10.0
"""How long a stage may take to stop before it is killed."""

Listener = Callable[[str, Event], None]
"""Called with the stage's name and each event, from a separate thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """What the process of a stage does, and its device and limits."""

    name: str
    job: "DataclassInstance"
    """The stage's job. It becomes JSON when the process is started."""
    device: str
    """`cpu` or `cuda:N`: the device that the process computes on. The process locks a GPU."""
    log: Path
    """File for the stage's own output."""
    budget: int = 0
    """Bytes of the device that it may use above its imports; 0: no limit."""
    seconds: float = 0.0
    """CPU time limit of one of its threads, in seconds; 0: no limit."""
    beside: bool = False
    """Whether it computes beside other processes on the device, whose lock the caller holds."""
    for_clients: bool = False
    """Whether it answers clients. In weeks, a journal and failures would fill the disk and the
    memory."""

    def descriptor(self, entry: str) -> int:
        """Return an open file with what the process is to do."""
        journal = None if self.for_clients else str(self.log.with_suffix(".items.jsonl"))
        return job_descriptor(
            {
                "name": self.name,
                "entry": entry,
                "arguments": job_fields(self.job),
                "device": self.device,
                "journal": journal,
                "beside": self.beside,
                "budget": {"bytes": self.budget} if self.budget else None,
            }
        )

    def open_log(self) -> int:
        """Create the log, and return where this process begins in it: after the output of earlier
        runs. Raises EnvironmentFault."""
        folder = self.log.parent
        with disk_faults(folder):
            refuse_links(folder)
            folder.mkdir(parents=True, exist_ok=True)
            with _appending(self.log) as file:
                return file.tell()


class StageProcess:
    """One running stage. Start and wait for it on the same thread, because the kernel ties the
    child's life to that thread."""

    def __init__(
        self,
        settings: ProcessSettings,
        entry: str,
        listen: Listener,
        forks: ForkServer | None = None,
    ) -> None:
        """Start the stage, whose module and function are `entry`, from the fork server `forks` if
        possible."""
        require("a stage", "msgspec")  # which reads its events
        self._settings = settings
        self.name = settings.name
        self.log = settings.log
        self._oom_kills = oom_kills()
        self._listen = listen
        job = settings.job
        self._is_sent_work = not settings.for_clients and bool(getattr(job, "requests", ""))
        self._files: ModelFiles = getattr(getattr(job, "half", job), "files", ModelFiles())
        # The memory that other workers use varies.
        used = 0 if settings.beside else device_used_bytes(settings.device)
        self.outcome = StageOutcome(name=self.name, baseline_before_bytes=used)
        self._started = time.monotonic()
        self._log_start = settings.open_log()
        document = settings.descriptor(entry)
        read_end, write_end = os.pipe()
        try:
            with _appending(self.log) as output:
                forked = forks.fork(document, output, write_end) if forks else None
                self._process: Process = forked or _fresh(document, output, write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
            os.close(document)
        self._reader = threading.Thread(target=self._read, args=(read_end,), daemon=True)
        self._reader.start()
        self._cpu_limit = None
        if seconds := settings.seconds:
            self._cpu_limit = limit_cpu_time(self.pid, self._process.send_signal, seconds)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> StageOutcome:
        """Wait until the stage has ended and its device is free. Raises the stage's error."""
        try:
            code = self._process.wait()
            self._reader.join()
        finally:
            if self._cpu_limit is not None:
                self._cpu_limit.set()
            self.outcome.seconds = self.outcome.seconds or time.monotonic() - self._started
        before, peak = self.outcome.baseline_before_bytes, self.outcome.peak_device_bytes
        warnings: list[str] = []
        if self._settings.beside:
            warnings = wait_until_gone(self._settings.device, self.pid)
        elif code or not isinstance(self._process, StayingProcess):
            self.outcome.baseline_after_bytes, warnings = wait_for_release(
                self._settings.device, before, peak
            )
        for warning in warnings:
            self._warn(f"{self.name}: {warning}")
        if code != 0 or self.outcome.error is not None:
            fault = fault_of_stage(self.name, self._process_exit(code))
            if isinstance(fault, Killed):  # it may be retried silently
                self._warn(fault.message)
            raise fault
        return self.outcome

    def _process_exit(self, code: int) -> ProcessExit:
        outcome = self.outcome
        above = outcome.peak_host_bytes - outcome.notes.get("loaded_bytes", 0)
        if self._settings.device.startswith("cuda"):
            above = outcome.peak_device_bytes - outcome.baseline_before_bytes
        return ProcessExit(
            code=code,
            files=self._files,
            error_event=outcome.error,
            log=self.log,
            last_lines=log_tail(self.log, self._log_start),
            items=outcome.items,
            peak_bytes=max(0, above) if outcome.notes else 0,
            budget=self._settings.budget,
            oom_kills=oom_kills() - self._oom_kills,
        )

    def wait_for_exit(self, seconds: float) -> bool:
        """Wait at most so many seconds. Return whether the process has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Stop the stage, and kill it if it does not stop in time. Published items count."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            if not self.wait_for_exit(STOP_SECONDS):
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
        self._reader.join(STOP_SECONDS)
        self.outcome.seconds = self.outcome.seconds or time.monotonic() - self._started

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lines:
            for event in map(event_of, lines):
                if event is None:
                    continue
                self._apply(event)
                with contextlib.suppress(OSError):  # the run record, which is written again
                    self._listen(self.name, event)

    def _apply(self, event: Event) -> None:
        outcome = self.outcome
        if self._is_sent_work:
            outcome.answered.update(answered_keys(event))
        match event:
            case Answered():
                outcome.items += len(event.keys)
                outcome.tokens += event.tokens
            case MediumOpened():
                outcome.open_media.add(event.media)
            case MediumClosed():
                outcome.open_media.discard(event.media)
            case Failed() if not self._settings.for_clients:
                outcome.failures.append(event)
            case TooLarge() if not self._settings.for_clients:
                outcome.too_large.append(event)
            case Warned():
                outcome.warnings.append(event.text)
            case StageNotes():
                outcome.notes.update(event.values)
            case MemorySample():
                outcome.peak_host_bytes = max(outcome.peak_host_bytes, event.peak_host_bytes)
                outcome.peak_device_bytes = max(outcome.peak_device_bytes, event.peak_device_bytes)
                # Kept in case it dies; StageEnded brings the whole timeline.
                point = [event.seconds, event.host_bytes, event.device_bytes]
                add_point(outcome.timeline, point)
            case StageError():
                outcome.error = event
            case StageEnded():
                for field in fields(event):
                    setattr(outcome, field.name, getattr(event, field.name))

    def _warn(self, text: str) -> None:
        self.outcome.warnings.append(text)
        self._listen(self.name, Warned(text=text))


def _appending(log: Path) -> IO[bytes]:
    return os.fdopen(open_below(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def _fresh(job: int, output: IO[bytes], events: int) -> "subprocess.Popen[bytes]":
    """Start a stage as an ordinary process, which does its own imports."""
    options = ["stages.process.child", str(job), str(os.getpid()), str(events)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", *options],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[events, job],
        process_group=0,  # Ctrl-C reaches the parent alone, which then stops the child
        env=child_environment(),
        cwd=ROOT,
    )
