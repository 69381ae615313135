"""The pipe by which a run sends work to a process of its own."""

import select
import threading
import time
from pathlib import Path

from artifacts.disk.regular_files import refuse_links
from stages.process.events import StageOutcome
from stages.process.requests import Message, RequestPipe

LOOK_SECONDS = 0.2
"""Seconds between two looks at what a process has done."""
PATIENCE_SECONDS = 600.0
"""How long a process that stays may answer nothing."""


class RunPipe(RequestPipe):
    """A pipe to a process of a run. A thread writes it, so that no caller waits for its reader."""

    def __init__(self, out: Path, name: str) -> None:
        """Create the pipe among the logs of the output folder `out`. Raises OSError."""
        folder = out / "logs"
        refuse_links(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.feed"
        path.unlink(missing_ok=True)  # of a run that was killed
        super().__init__(path)
        self._has_more = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_sent, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        super().send(message)
        self._has_more.set()

    def close(self) -> None:
        self._is_closed = True
        self._has_more.set()
        self._thread.join()
        super().close()

    def _write_sent(self) -> None:
        room = select.poll()
        room.register(self.descriptor, select.POLLOUT)
        while not self._is_closed:
            if self.write():
                self._has_more.wait()
                self._has_more.clear()
            else:
                room.poll(LOOK_SECONDS * 1000)


class Patience:
    """How long to wait for the answers of a process that stays. After that it is sent the end,
    which costs a slow process no work, and heals one that has lost an item."""

    def __init__(self) -> None:
        self._answers = -1
        self._since = 0.0

    def ends(self, outcome: StageOutcome) -> bool:
        """Return whether the process has answered nothing for PATIENCE_SECONDS."""
        answers, now = outcome.items + len(outcome.answered), time.monotonic()
        if answers != self._answers:
            self._answers, self._since = answers, now
        return now - self._since > PATIENCE_SECONDS
