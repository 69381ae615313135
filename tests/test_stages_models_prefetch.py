"""What is prefetched and written behind comes in order, and no failure of it is lost."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stages.models.prefetch import BEHIND, PREFETCH_BATCHES, prefetched, write_behind

SECONDS = 10.0


def test_batches_are_read_while_another_is_used() -> None:
    read: list[int] = []
    third = threading.Event()

    def note(batch: int) -> int:
        read.append(batch)
        if len(read) == 1 + PREFETCH_BATCHES:
            third.set()
        return batch * 10

    given = prefetched(range(5), note)
    assert next(given) == (0, 0)
    assert third.wait(SECONDS)
    assert list(given) == [(n, n * 10) for n in range(1, 5)]
    assert read == [0, 1, 2, 3, 4]


def test_what_comes_while_the_disk_is_busy_is_written_at_once_and_in_order() -> None:
    busy, goes_on, written = threading.Event(), threading.Event(), list[list[int]]()

    def write(made: list[int]) -> None:
        busy.set()
        assert goes_on.wait(SECONDS)
        written.append(made)

    with write_behind(write) as later:
        later(0)
        assert busy.wait(SECONDS)
        for number in range(1, BEHIND):
            later(number)
        assert written == []
        goes_on.set()
    assert written == [[0], list(range(1, BEHIND))]


def test_no_more_than_a_few_batches_wait_for_the_disk() -> None:
    most = 0

    def write(made: list[int]) -> None:
        nonlocal most
        most = max(most, len(made))

    with write_behind(write) as later:
        for number in range(100):
            later(number)
    assert most <= BEHIND


@pytest.mark.parametrize("more", [0, 1, 2 * BEHIND])
def test_what_failed_behind_is_raised_and_nothing_is_written_after_it(more: int) -> None:
    written: list[int] = []

    def write(made: list[int]) -> None:
        if 0 in made:
            raise OSError("the disk is full")
        written.extend(made)

    with pytest.raises(OSError, match="full"), write_behind(write) as later:
        for number in range(1 + more):
            later(number)
    assert written == []


def test_what_was_handed_over_is_written_when_the_caller_fails() -> None:
    written: list[int] = []
    with pytest.raises(ValueError, match="caller"), write_behind(written.extend) as later:
        later(1)
        raise ValueError("the caller's own")
    assert written == [1]


def test_who_fails_ends_though_the_next_batch_never_comes() -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def told() -> Iterator[int]:
        yield 0
        asked.set()
        goes_on.wait(6 * SECONDS)

    def work() -> None:
        given: Any = prefetched(told(), lambda batch: batch)
        with contextlib.suppress(ValueError):
            for _ in given:
                assert asked.wait(SECONDS)
                raise ValueError

    working = threading.Thread(target=work, daemon=True)
    working.start()
    working.join(SECONDS)
    ended = not working.is_alive()
    goes_on.set()
    assert ended, "it waits for what is told next"
