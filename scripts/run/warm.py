"""Keeps one process that has imported what stages need: the fork servers of tests, and of the
commands that the pages show, are forked from it. Importing torch anew took half of their time.

How it works:

1. A command starts its fork server as it does for a user. A hook that Python runs at its start
(`take_over`) hands the socket and the environment of that process to the warm process.

2. The warm process forks, and the fork becomes the fork server. It refuses a process that is
traced, or has other limits, rights or namespaces, or other variables that libraries read while they
are imported. Such a process becomes the server itself, as it does if there is no warm process.

3. The process that was started waits until the fork ends. A file names the fork, so that tests find
what was forked for a command, and can kill it.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.process.child_environment import WAIT_POLICY, child_environment
from stages.process.fork_client import ASK_NVML

PLACE = "WARM_PROCESS"
"""Environment variable: the address of the warm process."""
MODULE = "stages.process.fork_server"
HOOK = (
    f"import os, sys; sys.orig_argv[-2:-1] == [{MODULE!r}] and {PLACE!r} in os.environ"
    f" and __import__({__name__!r}, fromlist=['']).take_over()"
)
"""Line of a `.pth` file, or a `sitecustomize.py`."""
REFUSED = b"no"
MESSAGE_BYTES = 1 << 17
READ_AT_IMPORT = (
    "ACCELERATE_", "BNB_", "CUDA_", "FAKE_GPU", "HF_", "HUGGINGFACE_", "KMP_", "LC_", "LD_",
    "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "ORT_", "PENSTOCK_PREFECT_STACK", "PYTHON", "PYTORCH_",
    "TOKENIZERS_", "TORCH_", "TRANSFORMERS_",
)  # fmt: skip
"""Beginnings of variables that libraries, or malloc, read at the start. The processes of a Prefect
stack are found by theirs."""


def take_over() -> None:
    """Have the warm process fork a server in the place of this process, and wait for its end.
    Return if there is none, or if it refuses."""
    fields = {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "pid": os.getpid(),
        "surroundings": surroundings(),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        try:
            line.connect(os.environ[PLACE])
        except OSError:
            return
        socket.send_fds(line, [json.dumps(fields).encode()], [int(sys.orig_argv[-1])])
        if line.recv(len(REFUSED)) == REFUSED:
            return
    os._exit(0)


def surroundings() -> dict[str, Any]:
    """Return what a fork of the warm process would not inherit from the process it stands for."""
    umask = os.umask(0)
    os.umask(umask)
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(READ_AT_IMPORT) and name != WAIT_POLICY  # which a stage sets itself
    }
    if path := variables.get("PYTHONPATH"):  # commands that start each other repeat the clone
        variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path.split(os.pathsep)))
    return {
        "variables": variables,
        "limits": [list(resource.getrlimit(each)) for each in limits],
        "rights": [*os.getresuid(), *os.getresgid(), *sorted(os.getgroups()), umask],
        "namespaces": sorted(os.readlink(path) for path in Path("/proc/self/ns").iterdir()),
        "group": Path("/proc/self/cgroup").read_text(encoding="utf-8"),
        "traced": "TracerPid:\t0\n" not in Path("/proc/self/status").read_text(encoding="utf-8"),
        "processors": [*sorted(os.sched_getaffinity(0)), os.nice(0), os.sched_getscheduler(0)],
    }


def serve(listener: socket.socket) -> None:
    """Import what stages need, then fork a fork server for each connection, until stdin is closed
    because the process that started this one has ended."""
    from flows.core.machine.launch import ENTRIES, IMPORTING
    from stages.process.deferred_imports import defer

    ours = json.loads(json.dumps(surroundings()))
    defer()
    gc.disable()
    for name in sorted(IMPORTING):
        importlib.import_module(ENTRIES[name].partition(":")[0])
    gc.enable()
    gc.freeze()
    forks: dict[int, tuple[int, Path]] = {}
    """Handle of a fork → its process id, and the file that names it."""
    while sys.stdin not in (ready := select.select([listener, sys.stdin, *forks], [], [])[0]):
        for handle in forks.keys() & ready:
            pid, named = forks.pop(handle)
            os.close(handle)
            os.waitpid(pid, 0)
            named.unlink()
        if listener not in ready:
            continue
        line, _ = listener.accept()
        with line:
            message, descriptors, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 1)
            if not descriptors:
                continue
            request = json.loads(message)
            if request["surroundings"] != ours:
                line.send(REFUSED)
            elif pid := os.fork():
                named = Path(f"{os.environ[PLACE]}.{request['pid']}")
                named.write_text(str(pid), encoding="utf-8")
                forks[os.pidfd_open(pid)] = pid, named
            else:
                listener.close()
                become(request, descriptors[0])
            os.close(descriptors[0])


def become(request: dict[str, Any], descriptor: int) -> None:
    """Go on as the fork server of a command. Never returns."""
    from stages.process.fork_server import Server, end_with_parent

    try:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nowhere, standard)
        os.close(nowhere)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        control = socket.socket(fileno=descriptor)
        end_with_parent(control)
        Server(control).serve()
    finally:
        os._exit(0)


def forked_for(pid: int) -> list[int]:
    """Return the fork that a process of this id has as its fork server, if it has one."""
    try:
        return [int(Path(f"{os.environ[PLACE]}.{pid}").read_text(encoding="utf-8"))]
    except (KeyError, OSError, ValueError):  # ValueError: it is being written
        return []


@contextlib.contextmanager
def warm_process(place: Path, **variables: str) -> Iterator[dict[str, str]]:
    """Keep the process for a `with` block, which gets the variables that lead commands to it."""
    lead = {PLACE: str(place / "warm.socket")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(lead[PLACE])
        listener.listen(64)
        process = subprocess.Popen(
            # Its last argument shows that its forks are fork servers; see `stage_processes.py`.
            [sys.executable, "-P", "-m", __name__, str(listener.fileno()), MODULE],
            pass_fds=[listener.fileno()],
            env={**child_environment(), ASK_NVML: "1", **variables, **lead},
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends
            stderr=subprocess.DEVNULL,  # bitsandbytes warns of a package that nobody needs
        )
    with process:
        try:
            yield lead
        finally:
            process.kill()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
