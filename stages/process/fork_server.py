"""The fork server imports once what several stages need, and forks itself for each stage:

    python -m stages.process.fork_server CONTROL_FD

How it works:

1. It computes nothing and never asks CUDA about its cards, because its forks could not use them.

2. Each message on its socket brings four descriptors: the stage's log, its events, a socket for
messages about that stage, and its job.

3. The server imports what the job needs, forks, and replies with the process id and a handle of the
process. When the process has ended, it sends the exit status.

4. It forks only while it has one thread, because a child would inherit another thread's locks
forever. Otherwise it replies `no`.

5. Its children die with it. It ends when its parent does, which closes the socket. The kernel then
sends SIGIO, so that it ends in the middle of an import, too.

6. If the parent asks it to stay, it forks nothing: it runs each stage itself, one after another, so
that what one has loaded is there for the next. It ends with a stage that fails.
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
from stages.process.deferred_imports import STAYS, has_used_cuda, importing_for_forks
from stages.process.job import ProcessJob, gc_frozen, read_job, value_in
from stages.process.output_streams import lasting_output

MESSAGE_BYTES = 1 << 16
DESCRIPTORS = 4
NO = b"no"
"""Reply if the stage must be started as an ordinary process."""


class Server:
    """Waits for messages on `control`; the parent has the other end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """Handle of a process → its id, and the socket on which its exit is reported."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._reported_cpu_seconds = 0.0

    def serve(self) -> None:
        """Serve until the parent is gone. The kernel then kills every child."""
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
            if request["stays"]:
                self._run_here(job, log, events, answer)
            elif len(os.listdir("/proc/self/task")) != 1 or has_used_cuda():
                answer.send(NO)
                answer.close()
            else:
                self._fork_child(request["since"], job, log, events, answer)
        finally:
            os.close(log)
            os.close(events)

    def _fork_child(
        self, since: float, job: ProcessJob, log: int, events: int, answer: socket.socket
    ) -> None:
        """Fork and report the child, which was requested at the time `since`."""
        server, seconds = os.getpid(), cpu_seconds()
        pid = os.fork()
        if pid == 0:
            waited = time.monotonic() - since
            origin = ParentInfo(server, waited, seconds - self._reported_cpu_seconds)
            self._run_child(job, origin, log, events, answer)
        self._reported_cpu_seconds = seconds
        handle = os.pidfd_open(pid)
        self._children[handle] = (pid, answer)
        self._poll.register(handle, select.POLLIN)
        try:
            socket.send_fds(answer, [str(pid).encode()], [handle])
        except OSError:  # the client has gone
            os.kill(pid, signal.SIGKILL)

    def _run_child(
        self, job: ProcessJob, origin: ParentInfo, log: int, events: int, answer: socket.socket
    ) -> None:
        """Run the stage in the child. Never returns."""
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
            if drawn := sys.modules.get("numpy.random"):  # otherwise it is seeded on import
                drawn.seed()
            with lasting_output():
                code = run_job(job, origin, events)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _run_here(self, job: ProcessJob, log: int, events: int, answer: socket.socket) -> None:
        """Run the stage in this process. Its handle is a pipe that is closed when it has ended."""
        STAYS[0] = True
        ended, running = os.pipe()
        socket.send_fds(answer, [str(os.getpid()).encode()], [ended])
        os.close(ended)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with lasting_output():
            code = run_job(job, ParentInfo(0, cpu_seconds=-cpu_seconds()), events)
        gc.collect()  # before the next stage freezes what is left
        with contextlib.suppress(OSError):
            answer.send(str(code).encode())
        os.close(running)
        answer.close()
        if code:
            os._exit(code)

    def _report_exit(self, handle: int) -> None:
        pid, answer = self._children.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            answer.send(str(os.waitstatus_to_exitcode(status)).encode())
        answer.close()


def warm(job: ProcessJob) -> None:
    """Import what a job needs. Errors are ignored here; the stage itself will report them."""
    arguments = job["arguments"]
    with gc_frozen():
        with contextlib.suppress(Exception), importing_for_forks(job["device"]):
            if value_in(arguments, "trust_remote_code"):  # run custom code in its own stage only
                __import__(job["entry"].partition(":")[0])
            else:
                load_entry(job["entry"], arguments)
        gc.freeze()  # keep children's collectors from writing to shared pages


def end_with_parent(control: socket.socket) -> None:
    """Exit as soon as the other end of `control` is closed, even in the middle of an import. The
    kernel's parent-death signal would come when the thread that started this process ends."""
    closed = select.poll()
    closed.register(control, select.POLLRDHUP)

    def look(*_: object) -> None:
        if closed.poll(0):
            os._exit(0)

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, fcntl.fcntl(control, fcntl.F_GETFL) | os.O_ASYNC)
    look()  # it may be closed already


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    parents = socket.socket(fileno=int(sys.argv[1]))
    end_with_parent(parents)
    Server(parents).serve()
    os._exit(0)
