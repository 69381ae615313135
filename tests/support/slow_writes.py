"""Runs a `penstock` command whose frames stage has written all of a pack, and waits before the
pack gets its name: a signal that comes then meets a half-written file."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any
from unittest.mock import patch

from artifacts.records.store import FolderStore
from flows.core.machine.launch import ENTRIES
from flows.interfaces.cli.main import main
from stages.process.child import load_entry
from stages.process.events import EventReporter

MODULE = "tests.support.slow_writes"
"""Name of this module, also where it is run as `__main__`."""
SECONDS = 60.0
"""Longer than any signal takes to come."""
ENTRY = "PENSTOCK_TEST_FRAMES_ENTRY"


def frames(job: dict[str, Any], report: EventReporter) -> None:
    """Run the frames stage."""
    put = FolderStore.put_if_absent

    def slowly(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        yield from parts
        time.sleep(SECONDS)

    def put_slowly(store: FolderStore, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        return put(store, name, slowly(parts) if name.startswith("frames/") else parts)

    with patch.object(FolderStore, "put_if_absent", put_slowly):
        load_entry(os.environ[ENTRY], job)(job, report)


if __name__ == "__main__":
    os.environ[ENTRY] = ENTRIES["frames"]
    ENTRIES["frames"] = f"{MODULE}:frames"  # type: ignore[index]
    sys.exit(main())
