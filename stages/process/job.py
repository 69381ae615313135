"""The JSON by which a stage's job passes from the planner to the worker.

A job travels in an in-memory file, which disappears however the processes end. A job is a dataclass
with nested values: dataclasses travel by field name. Items are NamedTuples and travel as lists of
values, because a job may hold 100,000 of them.

The requests of a long-running worker are JSON lines in a named pipe, written by the parent. A stage
whose job names such a pipe keeps what it has loaded. It handles each line until the other end
closes the pipe. A line is a batch of requests, or names requests that are withdrawn.
"""

import contextlib
import gc
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from artifacts.disk.json_records import read_record
from stages.process.events import FEED_NOTE, EventReporter


@contextlib.contextmanager
def gc_frozen() -> Iterator[None]:
    """Pause the garbage collector in this block. Collections take a quarter of the time of
    importing torch and the classes of a model."""
    if not gc.isenabled():  # already inside such a block
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


J = TypeVar("J")


def job_fields(job: Any) -> dict[str, Any]:
    """Return the fields of a job by name, for JSON. Unlike `asdict`, it does not copy the items of
    every batch."""
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    return {n: job_fields(value) if is_dataclass(value) else value for n, value in values.items()}


def job_descriptor(job: dict[str, Any]) -> int:
    descriptor = os.memfd_create("penstock-job")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(job).encode())  # three times as fast as json.dump
    return descriptor


def read_job(descriptor: int) -> dict[str, Any]:
    """Return the job behind a descriptor, and close it. Another process may have read it before and
    moved the shared position."""
    with os.fdopen(descriptor, "rb") as file, gc_frozen():
        file.seek(0)
        job: dict[str, Any] = json.load(file)
    return job


def value_in(arguments: dict[str, Any], name: str) -> Any:
    """Return a field of a job, or of the `half` in it; None without it."""
    return {**arguments, **arguments.get("half", {})}.get(name)


def parse_job(kind: type[J], values: Mapping[str, Any]) -> J:
    """Return a job of class `kind`. Raises TypeError as `read_record` does."""
    with gc_frozen():  # none of the 100,000 items is garbage
        return read_record(kind, values)


def items_of(kind: type[J], values: Sequence[Any]) -> list[J]:
    """Return items of a class, each given as the list of its values. Raises TypeError."""
    return read_record(list[kind], values)  # type: ignore[valid-type]


WITHDRAWN = "withdrawn"
"""Field of a line that lists the keys of cancelled requests."""


def read_requests(pipe: str) -> Iterator[Any]:
    """Yield each line as it arrives, until the writer closes the pipe."""
    # A missing pipe was closed before anything was sent.
    with contextlib.suppress(FileNotFoundError), open(pipe, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def portions(pipe: str, report: EventReporter) -> Iterator[Any]:
    """Yield each portion of a fed stage as it arrives, until the end is announced."""
    lines = read_requests(pipe)
    for number in count(1):
        began = time.monotonic()
        portion = next(lines, None)
        report.idle.add(began)
        if portion is None:
            return
        report.note(**{FEED_NOTE: number})
        yield portion


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
