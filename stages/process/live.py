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
"""Field of a line that lists the keys of cancelled requests."""


def read_requests(pipe: str) -> Iterator[Any]:
    """Yield each line as it arrives, until the writer closes the pipe."""
    # A missing pipe was closed before anything was sent.
    with contextlib.suppress(FileNotFoundError), open(pipe, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Keyed(Protocol):
    """The fields of every request."""

    @property
    def key(self) -> str: ...


W = TypeVar("W", bound=Keyed)


class PipedRequest(Generic[W]):
    """One request as it was sent."""

    is_withdrawn = False
    """Whether the request was cancelled; another thread may set it at any time."""

    def __init__(self, item: W) -> None:
        self.item = item


class RequestBatches(Generic[W]):
    """The batches that arrive over a pipe, read by a separate thread. A cancellation is therefore
    seen at once, during a computation, too."""

    def __init__(self, pipe: str, kind: type[W]) -> None:
        """Start reading requests of class `kind`."""
        self._kind = kind
        self._batches: SimpleQueue[list[PipedRequest[W]] | None] = SimpleQueue()
        self._requests: WeakValueDictionary[str, PipedRequest[W]] = WeakValueDictionary()
        """Unfinished requests of this process, by key."""
        self._thread = Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[list[PipedRequest[W]]]:
        """Yield the requests of each batch that are not cancelled, in order, until the pipe is
        closed."""
        while (batch := self._batches.get()) is not None:
            if active := [request for request in batch if not request.is_withdrawn]:
                yield active

    def _read(self, pipe: str) -> None:
        try:
            for line in read_requests(pipe):
                if isinstance(line, dict):
                    for key in line[WITHDRAWN]:
                        if (request := self._requests.pop(key, None)) is not None:
                            request.is_withdrawn = True
                    continue
                batch = list(map(PipedRequest, items_of(self._kind, line)))
                self._requests.update((request.item.key, request) for request in batch)
                self._batches.put(batch)
                del batch  # a kept reference would keep its requests alive
        finally:
            self._batches.put(None)


class RequestPipe:
    """The writing end of a request pipe. The reader may die and be restarted. No call blocks: data
    that the pipe does not take is buffered."""

    def __init__(self, path: Path) -> None:
        """Create a pipe. Raises OSError."""
        self.path = path
        os.mkfifo(path, 0o600)
        # Opened for reading, too: opening for writing alone fails until a reader has opened it.
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._buffer: deque[memoryview] = deque()

    def send(self, line: Any) -> None:
        """Buffer a line for the next `write`."""
        self._buffer.append(memoryview(json.dumps(line).encode() + b"\n"))

    def write(self) -> bool:
        """Write as much as the pipe takes. Return whether the buffer is empty."""
        with contextlib.suppress(BlockingIOError):
            while self._buffer:
                written = os.write(self.descriptor, self._buffer[0])
                self._buffer[0] = self._buffer[0][written:]
                if not self._buffer[0]:
                    self._buffer.popleft()
        return not self._buffer

    def close(self) -> None:
        """Close the pipe. The stage ends after it has read what was written."""
        self._buffer.clear()
        with contextlib.suppress(OSError):
            self.path.unlink()  # before closing: a reader that opens it later would wait forever
        os.close(self.descriptor)
