"""Records which functions of the product each test calls, in every process that the test starts.

1. A `.pth` file of the copy's environment calls `start` when any interpreter begins, so that stage
   processes, servers and commands are recorded like the tests' own process.
2. `sys.monitoring` reports the first call of every function and is then silent about it until
   the next test begins, so that recording costs little.
3. pytest writes the running test into the environment, and children inherit it from there.

Needs Python 3.12. Imports nothing but the standard library: it runs before everything else.
"""

import os
import sys
import time
from pathlib import Path
from types import CodeType
from typing import Any

RECORD = "PENSTOCK_TEST_RECORD_CALLS"
"""In the environment: the folder into which every process writes a file of its own."""
ROOT = str(Path(__file__).resolve().parents[3]) + os.sep
PRODUCT = ("artifacts", "flows", "penstock", "penstock_demo", "stages")
PACKAGES = tuple(f"{ROOT}{name}{os.sep}" for name in PRODUCT)


class Recorder:
    """Writes a line for each function that a test calls first."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file, self._pid, self._test = -1, 0, ""

    def called(self, code: CodeType, offset: int) -> object:
        """Take note of a call; the monitoring's own signature."""
        if code.co_filename.startswith(PACKAGES):
            name = code.co_qualname.split(".<locals>")[0].split("<lambda>")[0].rstrip(".")
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
            if test:
                self._write(test, f"{code.co_filename[len(ROOT) :]}:{name or '<module>'}")
        return sys.monitoring.DISABLE  # type: ignore[attr-defined,unused-ignore]

    def _write(self, test: str, function: str) -> None:
        if self._pid != os.getpid():  # a forked process shares no file with its parent
            self._pid, self._test = os.getpid(), ""
            path = f"{self._folder}/{self._pid}-{time.time_ns()}.calls"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        head = "" if test == self._test else f"\t{test}\n"
        self._test = test
        os.write(self._file, f"{head}{function}\n".encode())


def start() -> None:
    """Begin to record in this process."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    if monitoring.get_tool(monitoring.COVERAGE_ID):
        return  # `site` reads its files a second time in some processes
    monitoring.use_tool_id(monitoring.COVERAGE_ID, "penstock")
    recorder = Recorder(os.environ[RECORD])
    monitoring.register_callback(
        monitoring.COVERAGE_ID, monitoring.events.PY_START, recorder.called
    )
    monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.PY_START)
    os.register_at_fork(after_in_child=monitoring.restart_events)
