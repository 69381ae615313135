"""The parent's side of the fork server.

The fork server starts stages from a process that has imported what they need. It starts with the
first stage that requests it and ends with the `with` block. If it is unavailable, refuses or does
not answer, the stage is started as an ordinary process. Only the start time depends on it. One that
was killed starts again with the second stage after that.
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
from typing import IO, TypeAlias

from stages.process.child_environment import ROOT, WAIT_POLICY, child_environment
from stages.process.cpu_limit import work_done
from stages.process.host_memory import host_free_bytes

IDLE_SECONDS = 60.0
"""How long the server may neither compute nor read while it imports what a stage needs."""
LOOK_SECONDS = 1.0
"""Time between two looks at what it has done."""
MIN_FREE_BYTES = 4 << 30
"""With less free memory, each stage imports for itself. The server holds about 0.4 GB until the run
ends."""

ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable: torch asks NVML, not CUDA, whether there are cards."""


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
                self._code = -signal.SIGKILL  # with the server, if that was killed
                with contextlib.closing(self._status), contextlib.suppress(OSError, ValueError):
                    self._code = int(self._status.recv(64))
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


class StayingProcess(ForkedProcess):
    """A stage that the server itself runs. Its handle is a pipe that is closed at its end."""

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)


Process: TypeAlias = "subprocess.Popen[bytes] | ForkedProcess"
"""A stage's process, however it was started."""


MOST_DEATHS = 3
"""Deaths of the server after which stages are ordinary processes."""
LACKS_HANDLES = not hasattr(os, "pidfd_open")
"""Whether Python has no handles of processes, without which nothing is forked."""


class ForkServer:
    """Starts the fork server when it is first needed; a context manager that ends the server and
    its children."""

    def __init__(self, *, stays: bool = False) -> None:
        """With `stays`, the server runs stages itself, one after another, so that what one has
        loaded is there for the next."""
        self._stays = stays
        self._last: ForkedProcess | None = None
        """The stage that a staying server was given last."""
        self._environment: dict[str, str] = {}
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._deaths = 0
        """How often the server died."""
        self._unavailable = LACKS_HANDLES
        """Whether stages are ordinary processes until `leave`."""

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._end()

    def kill(self) -> None:
        """Kill the server and its children, also while another thread waits for it."""
        if (process := self._process) is not None:
            process.kill()

    def leave(self) -> None:
        """End the server, and wait until it is gone. The next stage starts another."""
        with self._lock:
            process, self._last = self._process, None
            self._end()
            self._unavailable = LACKS_HANDLES
        if process is not None:
            process.wait()

    def fork(self, job: int, log: IO[bytes], events: int) -> ForkedProcess | None:
        """Fork the stage whose job is behind a descriptor. Return None if it must be started as an
        ordinary process."""
        message = json.dumps({"since": time.monotonic(), "stays": self._stays}).encode()
        if self._last is not None and self._last.poll() != 0:  # it failed, and the server with it
            self.leave()
        with self._lock:
            if not self._ensure_started() or self._control is None:
                return None
            status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    descriptors = [log.fileno(), events, theirs.fileno(), job]
                    socket.send_fds(self._control, [message], descriptors)
                pid, handles = self._receive_answer(status)
            except OSError as error:
                self._end()
                self._deaths += 1
                is_hopeless = isinstance(error, TimeoutError) or self._deaths >= MOST_DEATHS
                self._unavailable = is_hopeless or LACKS_HANDLES
                pid, handles = None, []
            except BaseException:
                self._end()
                status.close()
                raise
        if pid is None:
            status.close()
            return None
        status.setblocking(True)
        if not self._stays:
            return ForkedProcess(pid, handles[0], status)
        self._last = StayingProcess(pid, handles[0], status)
        return self._last

    def _receive_answer(self, status: socket.socket) -> tuple[int | None, list[int]]:
        """Return the process id (None: refused), and a handle of the process. Waits as long as the
        server makes progress: imports take minutes on a busy machine. Raises OSError if it died."""
        assert self._process is not None
        status.settimeout(LOOK_SECONDS)
        done, since = work_done(self._process.pid), time.monotonic()
        while True:
            try:
                reply, handles, _, _ = socket.recv_fds(status, 64, 1)
                if not reply:
                    raise ConnectionResetError
                return int(reply) if reply.isdigit() else None, handles
            except TimeoutError:
                if (now := work_done(self._process.pid)) != done:
                    done, since = now, time.monotonic()
                elif time.monotonic() - since > IDLE_SECONDS:
                    raise

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
            server_end = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "stages.process.fork_server", str(server_end)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[server_end],
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
        """End the server. No other starts unless the caller clears `_unavailable` afterwards."""
        self._unavailable = True
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            # Freeing its memory takes the kernel a while; do not wait for it.
            threading.Thread(target=self._process.wait, daemon=True).start()
            self._process = None
