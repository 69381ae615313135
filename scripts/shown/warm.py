"""Keeps one process that has imported what stages need: the fork servers of the commands that the
pages show are forked from it, because importing torch anew took half of the time of these commands.

A command is started as a user starts it, and starts its fork server. A line in the `.pth` file of
the page's environment calls `take_over` there, before that process imports anything: it hands its
socket and its environment to the warm process, and waits until the fork has ended.
"""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.process.environment import child_environment

PLACE = "SHOWN_WARM_PROCESS"
"""Environment variable: the address of the warm process."""
MODULE = "stages.process.fork_server"
HOOK = (
    f"import os, sys; {MODULE!r} in sys.orig_argv and {PLACE!r} in os.environ"
    f" and __import__({__name__!r}, fromlist=['']).take_over()"
)
"""Line of a `.pth` file."""
MESSAGE_BYTES = 1 << 17


def take_over() -> None:
    """Have the warm process fork a server in the place of this process, and wait for its end. If
    there is none, return, so that this process becomes the server itself."""
    request = json.dumps({"environment": dict(os.environ), "folder": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        try:
            line.connect(os.environ[PLACE])
        except OSError:
            return
        socket.send_fds(line, [request], [int(sys.orig_argv[-1])])
        line.recv(1)
    os._exit(0)


def serve(listener: socket.socket) -> None:
    """Import what stages need, then fork a fork server for each connection."""
    from flows.machine.launch import ENTRIES, IMPORTING
    from stages.process.deferred_imports import defer

    defer()
    for name in sorted(IMPORTING):
        importlib.import_module(ENTRIES[name].partition(":")[0])
    while True:
        line, _ = listener.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # forks that have ended
                pass
        with line:
            message, descriptors, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 1)
            if descriptors and os.fork() == 0:
                listener.close()
                become(json.loads(message), descriptors[0])
            for descriptor in descriptors:
                os.close(descriptor)


def become(request: Mapping[str, object], descriptor: int) -> None:
    """Go on as the fork server of a command. Never returns."""
    from stages.process.fork_server import Server, end_with_parent

    try:
        os.setpgid(0, 0)
        environment, folder = request["environment"], request["folder"]
        assert isinstance(environment, dict) and isinstance(folder, str)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        control = socket.socket(fileno=descriptor)
        end_with_parent(control)
        Server(control).serve()
    finally:
        os._exit(0)


@contextlib.contextmanager
def warm_process(place: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Keep the process for a `with` block, which gets the variables that lead commands to it."""
    address = str(place / "warm.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(16)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env={**child_environment(), **env},
            stdin=subprocess.DEVNULL,
        )
    try:
        yield {PLACE: address}
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
