"""The parent's side of the fork server, which starts stages from a process that has imported what
they need.

The server starts with the first stage that requests it and ends with the `with` block. If it is
unavailable, refuses or does not answer, the stage is started as an ordinary process. Only the start
time depends on it.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from typing import IO, Protocol

from stages.process.cgroup import host_free_bytes
from stages.process.environment import ROOT, WAIT_POLICY, child_environment

ANSWER_SECONDS = 60.0
"""How long the server may take to import what a stage needs, and to fork."""
MIN_FREE_BYTES = 4 << 30
"""With less free memory, each stage imports for itself. The server holds about 0.4 GB until the run
ends."""

ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable: torch asks NVML, not CUDA, whether there are cards."""


class Process(Protocol):
    """A stage's process, however it was started: the part of `subprocess.Popen` that is used."""

    @property
    def pid(self) -> int: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, sig: int) -> None: ...


class ForkedProcess:
    """A child of the fork server; safe to use from several threads."""

    def __init__(self, pid: int, handle: int, status: socket.socket) -> None:
        self.pid = pid
        self._handle = handle
        self._status = status
        self._code: int | None = None
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, handle)  # not earlier: another thread may be waiting on it

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; a negative number is a signal. Raises TimeoutExpired."""
        ended = select.poll()
        ended.register(self._handle, select.POLLIN)
        if not ended.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired("stage", timeout or 0.0)
        with self._lock:
            if self._code is None:
                with contextlib.closing(self._status):
                    # Empty: the server was killed, and the kernel has killed its children.
                    self._code = int(_received(self._status) or -signal.SIGKILL)
        return self._code

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, sig)


class ForkServer:
    """Starts the fork server when it is first needed; a context manager that ends the server and
    its children."""

    def __init__(self) -> None:
        self._environment: dict[str, str] = {}
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._unavailable = not hasattr(os, "pidfd_open")

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._end()

    def fork(self, job: int, log: IO[bytes], events: int) -> ForkedProcess | None:
        """Fork the stage whose job is behind a descriptor. Return None if it must be started as an
        ordinary process."""
        message = json.dumps({"since": time.monotonic()}).encode()
        with self._lock:
            if not self._ensure_started() or self._control is None:
                return None
            status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    descriptors = [log.fileno(), events, theirs.fileno(), job]
                    socket.send_fds(self._control, [message], descriptors)
                status.settimeout(ANSWER_SECONDS)
                reply, handles, _, _ = socket.recv_fds(status, 64, 1)
            except OSError:  # killed or too slow: it must not fork any more
                self._end()
                reply = b""
            except BaseException:
                self._end()
                status.close()
                raise
        if not reply.isdigit():
            status.close()
            return None
        status.setblocking(True)
        return ForkedProcess(int(reply), handles[0], status)

    def _ensure_started(self) -> bool:
        """Start the server if that is allowed. Return whether it can be used."""
        environment = child_environment()
        if self._control is None and not self._unavailable and host_free_bytes() >= MIN_FREE_BYTES:
            self._environment = environment
            self._start()
        # The server may differ in how its threads wait: a stage sets that itself.
        same = {**environment, WAIT_POLICY: ""} == {**self._environment, WAIT_POLICY: ""}
        return self._control is not None and same

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "stages.process.fork_server",
                        str(theirs.fileno()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C reaches the parent alone
                    env={**self._environment, ASK_NVML: "1"},
                    cwd=ROOT,
                )
            except OSError:
                ours.close()
                self._unavailable = True
                return
        self._control = ours

    def _end(self) -> None:
        self._unavailable = True
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            # Freeing its memory takes the kernel a while; do not wait for it.
            threading.Thread(target=self._process.wait, daemon=True).start()
            self._process = None


def _received(status: socket.socket) -> bytes:
    try:
        return status.recv(64)
    except OSError:
        return b""
