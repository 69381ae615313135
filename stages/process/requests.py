"""The requests by which a parent gives work to a running stage.

How it works:

1. The parent writes messages into a named pipe, one line of JSON each: `Make` has batches of items,
   `Withdraw` names requests that nobody waits for any more, and `End` says that nothing follows.
2. In the worker, a thread reads the messages, so that a withdrawal is seen during a computation.
   Each item becomes a `Request`, which the stage carries until the item has its answer.
3. An answer is an event with the item's key: its record is stored, it failed, it is too large, or
   its caption ended.
4. A request that the stage lets go of without an answer is answered all the same: that of a client
   fails, and that of a run is returned. Otherwise they would wait for as long as the worker runs.

The pipe stays open until the worker has ended. If it is closed before `End`, the parent is gone or
has no more use for the worker, which finishes what it has.
"""

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, Protocol, Self, TypeVar, get_args
from weakref import WeakValueDictionary

from artifacts.disk.json_records import read_record
from stages.process.events import NOT_ANSWERED, EventReporter
from stages.process.job import items_of, job_fields

BEGUN = "begun"
"""Note with the number of the `Make` that a worker begins with, if it has a number."""
FORGOTTEN_SECONDS = 0.5
"""How long after the stage let go of a request it counts as forgotten. A stage that ends with an
error lets go of all its requests, and its parent gives them to another worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Make:
    """Make the records of these items."""

    batches: Sequence[Sequence[Any]]
    """Items by batch: what is computed together, in a stage that computes batches."""
    number: int = 0
    """The worker notes this number when it begins with the message; 0: it notes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdraw:
    """Nobody waits for these keys any more."""

    keys: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """Nothing follows: finish what was sent, and exit."""


Message = Make | Withdraw | End
MESSAGE_CLASSES: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Message)}
"""Name of a message's class, which begins its line → the class."""


def line_of_message(message: Message) -> str:
    return json.dumps({"message": type(message).__name__, **job_fields(message)}) + "\n"


def message_of_line(line: str) -> Message:
    """Return the message of a line. Raises ValueError, KeyError or TypeError for any other line."""
    values = json.loads(line)
    message: Message = read_record(MESSAGE_CLASSES[values.pop("message")], values)
    return message


def read_messages(pipe: str) -> Iterator[Make | Withdraw]:
    """Yield each message as it arrives, until `End`, or until the writer closes the pipe."""
    # A missing pipe was closed before anything was sent.
    with contextlib.suppress(FileNotFoundError), open(pipe, encoding="utf-8") as lines:
        for message in map(message_of_line, lines):
            if isinstance(message, End):
                return
            yield message


class Keyed(Protocol):
    """The fields of every item."""

    @property
    def key(self) -> str: ...


W = TypeVar("W", bound=Keyed)


class Request(Generic[W]):
    """An item that a stage is to make: one that was sent, or one of its own job."""

    is_withdrawn = False
    """Whether nobody waits for it any more; another thread may set it at any time."""

    def __init__(self, item: W, let_go: Callable[[], object] | None = None) -> None:
        """`let_go` is called when the stage has dropped this object."""
        self.item = item
        self._let_go = let_go

    def __del__(self) -> None:
        if self._let_go is not None:
            self._let_go()


class Requests(Generic[W]):
    """The requests that arrive over a pipe, by message. The stage works on them in the context of
    this object. After it, the stage sends its last answers and calls `close`."""

    def __init__(
        self, pipe: str, kind: type[W], report: EventReporter, *, for_clients: bool = False
    ) -> None:
        """Start to read items of class `kind`. `report` sends their answers."""
        self._kind = kind
        self._report = report
        self._for_clients = for_clients
        self._messages: SimpleQueue[tuple[Make, list[list[Request[W]]]] | Exception | None]
        self._messages = SimpleQueue()
        self._requests: WeakValueDictionary[str, Request[W]] = WeakValueDictionary()
        """Requests that the stage carries, by key."""
        self._open: dict[str, int] = {}
        """Key of each request without an answer → number of the request."""
        self._numbers = count()
        self._let_go: SimpleQueue[tuple[float, str, int] | None] = SimpleQueue()
        """When the stage let go of a request, its key and its number; None at the end."""
        self._is_over = False
        """Whether the work has ended, perhaps with an error."""
        report.on_answer = self._close
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._answer_forgotten, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over = True
        self._let_go.put(None)

    def close(self) -> None:
        """Answer what is still open: all other answers were sent."""
        for key in [*self._open]:
            self._answer(key)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[list[Request[W]]]:
        """Return the batches of the next message, without requests that are withdrawn. Raises what
        was wrong with a message."""
        while True:
            began = time.monotonic()
            taken = self._messages.get()
            self._report.idle.add(began)
            if taken is None or isinstance(taken, Exception):
                self._messages.put(None)  # for whoever looks again
                raise taken or StopIteration
            message, batches = taken
            if message.number:
                self._report.note(**{BEGUN: message.number})
            left = [[one for one in batch if not one.is_withdrawn] for batch in batches]
            if left := [batch for batch in left if batch]:
                return left

    def _read(self, pipe: str) -> None:
        try:
            for message in read_messages(pipe):
                if isinstance(message, Withdraw):
                    for key in message.keys:
                        self._withdraw(key)
                    continue
                items = (items_of(self._kind, batch) for batch in message.batches)
                batches = [[*map(self._opened, batch)] for batch in items]
                self._messages.put((message, batches))
                del batches
            self._messages.put(None)
        except Exception as error:  # raised where the work waits for it
            self._messages.put(error)

    def _opened(self, item: W) -> Request[W]:
        key, number = item.key, next(self._numbers)
        self._open[key] = number
        request = Request(item, lambda: self._let_go.put((time.monotonic(), key, number)))
        self._requests[key] = request
        return request

    def _withdraw(self, key: str) -> None:
        self._close([key])
        if (request := self._requests.pop(key, None)) is not None:
            request.is_withdrawn = True

    def _close(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._open.pop(key, None)

    def _answer_forgotten(self) -> None:
        while (dropped := self._let_go.get()) is not None:
            began, key, number = dropped
            time.sleep(max(0.0, began + FORGOTTEN_SECONDS - time.monotonic()))
            if self._open.get(key) == number and not self._is_over:
                self._answer(key)

    def _answer(self, key: str) -> None:
        if self._for_clients:
            message = "the model's process gave no answer to this request"
            self._report.failure(key, NOT_ANSWERED, message, "Send it again; see the server's log")
        else:
            self._report.returned([key])


class RequestPipe:
    """The writing end of a pipe of messages. The reader may die and be restarted. No call blocks:
    data that the pipe does not take is buffered."""

    def __init__(self, path: Path) -> None:
        """Create a pipe. Raises OSError."""
        self.path = path
        os.mkfifo(path, 0o600)
        # Opened for reading, too: opening for writing alone fails until a reader has opened it.
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._buffer: deque[memoryview] = deque()

    def send(self, message: Message) -> None:
        """Buffer a message for the next `write`."""
        self._buffer.append(memoryview(line_of_message(message).encode()))

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
        """Close the pipe, once its reader has ended."""
        self._buffer.clear()
        with contextlib.suppress(OSError):
            self.path.unlink()  # before closing: a reader that opens it later would wait forever
        os.close(self.descriptor)
