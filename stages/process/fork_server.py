"""The fork server: a process that imports once what several stages need and forks itself for each:
`python -m stages.process.fork_server CONTROL_FD`.

How it works:

1. It computes nothing and makes no CUDA context.
2. Each message on its socket brings four descriptors: the stage's log, its events, a socket for
   messages about that stage, and its job.
3. The server imports what the job needs, forks, and answers with the process id and a handle of the
   process. When the process has ended, it sends the exit status.
4. It forks only while it has one thread, because a child would inherit another thread's locks
   forever. Otherwise it answers `no`.
5. Its children die with it. It ends when its parent does, which closes the socket. The kernel then
   sends SIGIO, so that it ends in the middle of an import, too.
"""

import contextlib
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

from stages.process.child import ParentInfo, load_entry, run_job
from stages.process.gc_freeze import gc_frozen
from stages.process.job_file import read_job, value_in

MESSAGE_BYTES = 1 << 16
DESCRIPTORS = 4
NO = b"no"
"""Answer where a stage is to be started as a process of its own."""


class Server:
    """Waits for messages on `control`, whose other end is the parent's."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """Handle of a process → its id, and where its end is told."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._reported_cpu_seconds = 0.0

    def serve(self) -> None:
        """Go on until the parent is gone. The kernel then kills every child."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._report_exit(descriptor)
                    continue
                message, descriptors, _, _ = socket.recv_fds(
                    self._control, MESSAGE_BYTES, DESCRIPTORS
                )
                if not message:
                    return
                self._fork(json.loads(message), *descriptors)

    def _fork(
        self, request: dict[str, Any], log: int, events: int, status: int, descriptor: int
    ) -> None:
        answer = socket.socket(fileno=status)
        try:
            job = read_job(descriptor)
            warm(job)
            handle = self._fork_child(request, job, log, events, answer)
            if handle is None:
                answer.send(NO)
                answer.close()
        finally:
            os.close(log)
            os.close(events)

    def _fork_child(
        self,
        request: dict[str, Any],
        job: dict[str, Any],
        log: int,
        events: int,
        answer: socket.socket,
    ) -> int | None:
        """Fork, and tell of the child; None where that cannot be done."""
        if len(os.listdir("/proc/self/task")) != 1:
            return None
        server, seconds = os.getpid(), cpu_seconds()
        pid = os.fork()
        if pid == 0:
            waited = time.monotonic() - request["since"]
            origin = ParentInfo(server, waited, seconds - self._reported_cpu_seconds)
            self._run_child(request, job, origin, log, events, answer)
        self._reported_cpu_seconds = seconds
        handle = os.pidfd_open(pid)
        self._children[handle] = (pid, answer)
        self._poll.register(handle, select.POLLIN)
        try:
            socket.send_fds(answer, [str(pid).encode()], [handle])
        except OSError:  # who asked is gone meanwhile
            os.kill(pid, signal.SIGKILL)
        return handle

    def _run_child(
        self,
        request: dict[str, Any],
        job: dict[str, Any],
        origin: ParentInfo,
        log: int,
        events: int,
        answer: socket.socket,
    ) -> None:
        """Be the stage, in the child. It does not return."""
        code = 1
        try:
            os.setpgid(0, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            self._control.close()
            answer.close()
            for handle, (_, other) in self._children.items():
                other.close()
                os.close(handle)
            if drawn := sys.modules.get("numpy.random"):  # else it is seeded when it is imported
                drawn.seed()
            code = run_job(job, origin, events)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _report_exit(self, handle: int) -> None:
        pid, answer = self._children.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            answer.send(str(os.waitstatus_to_exitcode(status)).encode())
        answer.close()


def warm(job: dict[str, Any]) -> None:
    """Import what a job needs. What goes wrong at it, the stage itself will tell."""
    arguments = job["arguments"]
    with gc_frozen():
        with contextlib.suppress(Exception):
            if value_in(
                arguments, "trust_remote_code"
            ):  # code of a model's own is for its stage alone
                __import__(job["entry"].partition(":")[0])
            else:
                load_entry(job["entry"], arguments)
        gc.freeze()  # so that no child's collector writes to what all share


def end_with_parent(control: socket.socket) -> None:
    """Exit as soon as the other end of `control` is closed, whatever is being done. The signal that
    the kernel can send at a parent's death would come at the end of the thread that started this
    process."""
    closed = select.poll()
    closed.register(control, select.POLLRDHUP)

    def look(*_: object) -> None:
        if closed.poll(0):
            os._exit(0)

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, fcntl.fcntl(control, fcntl.F_GETFL) | os.O_ASYNC)
    look()  # it may have been closed before


def cpu_seconds() -> float:
    """Return the seconds of processor time that this process has had."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    parents = socket.socket(fileno=int(sys.argv[1]))
    end_with_parent(parents)
    Server(parents).serve()
    os._exit(0)
