"""Fork servers that are forked from the process with imported libraries, and those that are not."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run.warm import PLACE, forked_for
from stages.process.child_environment import child_environment
from stages.process.fork_client import ASK_NVML
from tests.support.started import until

pytestmark = pytest.mark.skipif(PLACE not in os.environ, reason="needs several workers (-n 2)")


@pytest.mark.in_turn
@pytest.mark.parametrize("variable", ["", "HF_HOME", "MALLOC_ARENA_MAX", "PENSTOCK_PREFECT_STACK"])
def test_a_fork_server_is_forked_where_its_environment_allows_it(variable: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    more = {variable: "1"} if variable else {}
    with ours:
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "stages.process.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**child_environment(), ASK_NVML: "1", **more},
                stdin=subprocess.DEVNULL,
            )
        until(lambda: forked_for(server.pid) or watches_its_socket(server.pid))
        forks = forked_for(server.pid)
        assert len(forks) == (not variable)
    assert server.wait(60) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in forks))


def watches_its_socket(pid: int) -> bool:
    """Whether a process has become a fork server, which handles SIGIO."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGIO - 1) & 1)
