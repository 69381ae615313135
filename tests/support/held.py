"""Runs a `penstock` command and pauses one stage after a given number of items. A test that then
kills the command hits that stage before it has finished, on a fast machine and on a busy one."""

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flows.core.machine.launch import ENTRIES
from flows.interfaces.cli.main import main
from stages.process.child import load_entry
from stages.process.events import EventReporter

VARIABLE = "PENSTOCK_TEST_HELD"
"""Stage, its entry, the number of the item, and a file that grows by a byte per item, whichever
process publishes it."""
MODULE = "tests.support.held"
"""Name of this module, also where it is run as `__main__`."""
HELD_SECONDS = 60.0
"""Longer than any kill takes to come; a stage that nobody kills then goes on."""


def held_environment(stage: str, item: int, mark: Path) -> Mapping[str, str]:
    """Return the environment of a command whose `stage` waits after so many items."""
    return {**os.environ, VARIABLE: f"{stage} {ENTRIES[stage]} {item} {mark}"}


def warm(job: dict[str, Any]) -> None:
    """Import what the real stage imports."""
    load_entry(os.environ[VARIABLE].split(" ")[1], job)


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Run the stage. The thread that publishes that item stops there."""
    _, entry, at, mark = os.environ[VARIABLE].split(" ", 3)
    publish, lock = EventReporter.answered, threading.Lock()

    def answered(self: EventReporter, *keys: str, **of_items: Any) -> None:
        for key in keys:
            with lock:
                # First: as soon as the item is published, the process may be killed.
                with Path(mark).open("ab") as file:
                    file.write(b".")
                    is_held = file.tell() == int(at)
                publish(self, key, **of_items)
            if is_held:
                time.sleep(HELD_SECONDS)

    with patch.object(EventReporter, "answered", answered):
        load_entry(entry, job)(job, report)


if __name__ == "__main__":
    ENTRIES[os.environ[VARIABLE].split(" ")[0]] = f"{MODULE}:run"  # type: ignore[index]
    sys.exit(main())
