"""Runs groups of tests in a copy of the clone, each in a fork of a process that has imported the
heavy libraries already.

    python child.py COPY

A group is a line of JSON on stdin: {"tests": […], "limit": seconds}. Where more processes
wait for the cores than there are, a second counts as the part of it that one of them gets.

The answer is a line: {"code": pytest's exit status, or null where time ran out,
"seconds": …, "failed": the first test that failed, or ""}. Whatever a group leaves
running is killed. Imports nothing of the project: the copy may be of an older commit.
"""

import contextlib
import ctypes
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

HEAVY = ("numpy", "PIL.Image", "av", "torch", "transformers", "pytest")
OPTIONS = ("-x", "-q", "-m", "", "-rfE", "--tb=no", "--assert=plain", "-p", "no:cacheprovider")
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/\S.*?)(?: - .*)?$", re.MULTILINE)
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: orphans of a group become children of this process."""


def main() -> None:
    copy = Path(sys.argv[1])
    os.chdir(copy)
    sys.path[0] = str(copy)
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        given = json.loads(line)
        print(json.dumps(run(given["tests"], given["limit"])), flush=True)


def run(tests: list[str], limit: float) -> dict[str, object]:
    """Run the tests in a fork, for `limit` seconds at most; `seconds` are those that count."""
    with tempfile.TemporaryDirectory(
        prefix="penstock-mutant-", ignore_cleanup_errors=True
    ) as folder:
        log = Path(folder) / "log"
        pid = os.fork()
        if pid == 0:
            _tests_in_fork(tests, Path(folder), log)
        code, seconds = _waited(pid, limit)
        _kill_descendants()
        found = FAILED.search(log.read_text(errors="replace")) if log.exists() else None
        shutil.rmtree(Path(folder) / "base", ignore_errors=True)
    return {"code": code, "seconds": round(seconds, 2), "failed": found[1] if found else ""}


def _tests_in_fork(tests: list[str], folder: Path, log: Path) -> None:
    code = 70
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        for number in (1, 2):
            os.dup2(output, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
        import pytest

        code = int(pytest.main([*OPTIONS, f"--basetemp={folder / 'base'}", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _waited(pid: int, limit: float) -> tuple[int | None, float]:
    """Return the exit status of a process, None where it was still running at the limit, and the
    seconds that count."""
    counted, last = 0.0, time.monotonic()
    while counted < limit:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), counted
        time.sleep(0.02)
        now = time.monotonic()
        counted += (now - last) / max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        last = now
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, counted


def _kill_descendants() -> None:
    """Kill and reap every process below this one, until there is none."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
