"""What is read ahead and written behind comes in order, and no failure of it is lost."""

import threading
from functools import partial

import pytest

from stages.models.ahead import AHEAD, read_ahead, write_behind

SECONDS = 10.0


def test_batches_are_read_while_another_is_used() -> None:
    read: list[int] = []
    third = threading.Event()

    def note(batch: int) -> int:
        read.append(batch)
        if len(read) == 1 + AHEAD:
            third.set()
        return batch * 10

    given = read_ahead(range(5), note)
    assert next(given) == (0, 0)
    assert third.wait(SECONDS)
    assert list(given) == [(n, n * 10) for n in range(1, 5)]
    assert read == [0, 1, 2, 3, 4]


def test_work_is_done_behind_the_caller_and_in_order() -> None:
    goes_on, done = threading.Event(), list[int]()

    def first() -> None:
        assert goes_on.wait(SECONDS)
        done.append(0)

    with write_behind() as later:
        later(first)
        assert done == []
        goes_on.set()
        for number in range(1, 4):
            later(partial(done.append, number))
    assert done == [0, 1, 2, 3]


def fail() -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("more", [0, 1])
def test_what_failed_behind_is_raised(more: int) -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="full"), write_behind() as later:
        later(fail)
        for number in range(more):
            later(partial(done.append, number))
    assert done == []


def test_what_was_begun_is_finished_when_the_caller_fails() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="caller"), write_behind() as later:
        later(partial(done.append, 1))
        raise ValueError("the caller's own")
    assert done == [1]
