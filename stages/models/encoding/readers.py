"""Prepares items on several threads, each with a processor of its own.

Processors are not stated to be thread-safe: a fast tokenizer that two threads use at once may raise
"Already borrowed". After out of memory, items are prepared one at a time.
"""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore
from typing import Any, Generic, Self, TypeVar

import torch

from stages.memory.oom_retry import catch_oom
from stages.models.processors.vision_pair import UNPAIRED

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Made = TypeVar("Made")
Outcome = tuple[list[Made], str | None]
"""The result in a list, and None; or an empty list, and the allocator's message."""


class Readers(Generic[Item, Made]):
    """Threads that prepare items. A context manager that cancels what was not begun."""

    def __init__(
        self, prepare: Callable[[Any, Item], Made], processor: Any, count: int, *, reads_text: bool
    ) -> None:
        """`prepare` gets a processor and an item. Without `reads_text` it calls no tokenizer, so
        all threads share one."""
        self._prepare = prepare
        self._turns = Semaphore(count)
        self._count = count
        self._processors: SimpleQueue[Any] = SimpleQueue()
        torch.get_num_threads()  # fixes the number of this thread, which `_use_one_core` would set
        start = _use_one_core if count > 1 else None
        self._threads = ThreadPoolExecutor(max_workers=count, initializer=start)
        if count > 1:
            self._threads.submit(self._copy, processor, reads_text)
        else:
            self._processors.put(processor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin(self, item: Item) -> "Future[Outcome[Made]]":
        """Prepare an item on the next free thread."""
        return self._threads.submit(self._in_turn, item)

    def finish(self, item: Item, begun: "Future[Outcome[Made]]") -> Made:
        """Return the prepared item. One that ran out of memory is tried again, alone. Raises what
        `prepare` raised."""
        made, message = begun.result()
        return self.alone(item) if message is not None else made.pop()

    def alone(self, item: Item) -> Made:
        """Prepare an item on this thread while no other one is prepared, and from now on prepare
        them one at a time."""
        while self._count > 1:
            self._turns.acquire()
            self._count -= 1
        with self._turns:
            return self._with_processor(item)

    def _in_turn(self, item: Item) -> Outcome[Made]:
        with self._turns:
            return catch_oom(lambda: self._with_processor(item))

    def _with_processor(self, item: Item) -> Made:
        processor = self._processors.get()
        try:
            return self._prepare(processor, item)
        finally:
            self._processors.put(processor)

    def _copy(self, processor: Any, reads_text: bool) -> None:
        """Copy the processor for the other threads, before the first use of any."""
        tokenizer = getattr(processor, "tokenizer", None)
        shared = {} if reads_text else {id(tokenizer): tokenizer}
        try:
            for _ in range(self._count - 1):
                self._processors.put(copied := copy.deepcopy(processor, dict(shared)))
                if processor in UNPAIRED:
                    UNPAIRED.add(copied)
        except Exception as error:  # code of the checkpoint may hold anything
            log.warning("the processor cannot be copied for other threads: %s", error)
        finally:
            self._processors.put(processor)


def _use_one_core() -> None:
    """Let this thread compute alone: the other cores have threads of their own."""
    torch.set_num_threads(1)
