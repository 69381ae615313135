"""The request pipe of a long-running worker: JSON lines in a named pipe, written by the parent.

A stage whose job names such a pipe keeps what it has loaded. It handles each line until the other
end closes the pipe. A line is a batch of requests, or names requests that are withdrawn.
"""

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from stages.process.job import items_of

WITHDRAWN = "withdrawn"
"""Field of a line that names works which nobody wants any more, by their keys."""


def read_requests(pipe: str) -> Iterator[Any]:
    """Yield each line that is told, as it comes, until no more can come."""
    # Without the pipe: it was closed before anything was told.
    with contextlib.suppress(FileNotFoundError), open(pipe, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Keyed(Protocol):
    """The fields that requests of every stage have."""

    @property
    def key(self) -> str: ...


W = TypeVar("W", bound=Keyed)


class PipedRequest(Generic[W]):
    """One request, as it was sent."""

    is_withdrawn = False
    """Whether nobody wants it any more; may be set at any moment, from another thread."""

    def __init__(self, item: W) -> None:
        self.item = item


class RequestBatches(Generic[W]):
    """The batches that arrive over a pipe, read by a separate thread. So a withdrawal is known at
    once, whatever this process is computing."""

    def __init__(self, pipe: str, kind: type[W]) -> None:
        """Begin to read works of this class."""
        self._kind = kind
        self._batches: SimpleQueue[list[PipedRequest[W]] | None] = SimpleQueue()
        self._works: WeakValueDictionary[str, PipedRequest[W]] = WeakValueDictionary()
        """Those of which anything is left to do here, by their keys."""
        self._thread = Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[list[PipedRequest[W]]]:
        """Yield what is still wanted of each batch, in order, until no more can come."""
        while (batch := self._batches.get()) is not None:
            if active := [work for work in batch if not work.is_withdrawn]:
                yield active

    def _read(self, pipe: str) -> None:
        try:
            for line in read_requests(pipe):
                if isinstance(line, dict):
                    for key in line[WITHDRAWN]:
                        if (work := self._works.pop(key, None)) is not None:
                            work.is_withdrawn = True
                    continue
                batch = list(map(PipedRequest, items_of(self._kind, line)))
                self._works.update((work.item.key, work) for work in batch)
                self._batches.put(batch)
                del batch  # what is kept here is never forgotten
        finally:
            self._batches.put(None)


class RequestPipe:
    """The writing end of a request pipe. The reader may die and be restarted. No call blocks: what
    the pipe does not take is kept until it does."""

    def __init__(self, path: Path) -> None:
        """Make a pipe. Raises OSError."""
        self.path = path
        os.mkfifo(path, 0o600)
        # For reading too, or opening it would fail until the stage has opened its end.
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._left: deque[memoryview] = deque()

    def send(self, line: Any) -> None:
        """Have one thing told by the next `write`."""
        self._left.append(memoryview(json.dumps(line).encode() + b"\n"))

    def write(self) -> bool:
        """Write what the pipe takes. Return whether that was all."""
        with contextlib.suppress(BlockingIOError):
            while self._left:
                written = os.write(self.descriptor, self._left[0])
                self._left[0] = self._left[0][written:]
                if not self._left[0]:
                    self._left.popleft()
        return not self._left

    def close(self) -> None:
        """End the stage's work, once it has read what was written."""
        self._left.clear()
        with contextlib.suppress(OSError):
            self.path.unlink()  # before it is closed, or who opens it in between waits for ever
        os.close(self.descriptor)
