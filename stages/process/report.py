"""Sends a stage's events to its parent as JSON lines.

Libraries print to stdout, so events travel on a file descriptor of their own.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault
from artifacts.regular_files import open_below
from artifacts.store import fault_of
from stages.process.events import (
    BatchShrunk,
    Event,
    Failed,
    Item,
    MediumClosed,
    MediumOpened,
    MemorySample,
    StageNotes,
    TooLarge,
    Total,
    Warned,
    line_of,
)


class EventReporter:
    """The child's end of the event pipe; safe to use from several threads.

    Each published item is also written to an append-only journal, which outlives both processes. A
    key that appears there twice was computed twice.
    """

    def __init__(self, descriptor: int, journal: Path | None = None) -> None:
        self._descriptor = descriptor
        self._journal = journal
        self._lock = threading.Lock()

    def total(self, items: int) -> None:
        """Report how many items this stage will publish."""
        self.send(Total(items=items))

    def item(self, key: str, *, label: str = "", tokens: int = 0) -> None:
        """Report that an item was published: it is on disk and will not be made again."""
        if self._journal is not None:
            self._note(self._journal, json.dumps({"time": round(time.time(), 3), "key": key}))
        self.send(Item(key=key, label=label, tokens=tokens))

    def _note(self, journal: Path, line: str) -> None:
        try:
            file = open_below(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with self._lock, os.fdopen(file, "a", encoding="utf-8") as lines:
                lines.write(line + "\n")
        except FileNotFoundError as error:
            raise EnvironmentFault(
                f"{journal.parent} is missing (removed or moved during the run)",
                hint="Finished work is kept; run the same command again to resume",
            ) from error
        except OSError as error:
            raise fault_of(error, journal.parent) from error

    def begin(self, media: str) -> None:
        """Report that a medium is opened. If the process dies now, the medium may be the cause."""
        self.send(MediumOpened(media=media))

    def done(self, media: str) -> None:
        """Report that a medium is closed."""
        self.send(MediumClosed(media=media))

    def failure(self, media: str, kind: str, message: str, hint: str) -> None:
        """Report that one medium, given by its content digest, cannot be used. The others can."""
        self.send(Failed(media=media, kind=kind, message=message, hint=hint))

    def batch_shrunk(self, batch: int, *, failed: int, error: str, block: int = 0) -> None:
        """Report that `failed` items did not fit together. Batches now have at most `batch` items,
        and blocks of batches at most `block`."""
        self.send(BatchShrunk(batch=batch, failed=failed, error=error, block=block))

    def too_large(self, key: str, needed_bytes: int, error: str) -> None:
        """Tell that an item does not fit, even alone, where others do. `needed_bytes` bytes, 0 if
        unknown, could not be had for it."""
        self.send(TooLarge(key=key, wanted_bytes=needed_bytes, error=error))

    def warning(self, text: str) -> None:
        """Report a warning for the user; the stage continues."""
        self.send(Warned(text=text))

    def memory(
        self, seconds: float, host: int, device: int, peak_host: int, peak_device: int
    ) -> None:
        """Report the current and the peak memory in bytes. It also shows that the process is
        alive."""
        self.send(
            MemorySample(
                seconds=seconds,
                host_bytes=host,
                device_bytes=device,
                peak_host_bytes=peak_host,
                peak_device_bytes=peak_device,
            )
        )

    def note(self, **values: Any) -> None:
        """Report facts about the stage for `run.json`, such as the attention implementation."""
        self.send(StageNotes(values))

    def send(self, event: Event) -> None:
        line = memoryview(line_of(event).encode())
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]
