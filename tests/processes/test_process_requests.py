"""Requests that are sent to a running stage: withdrawn, answered, or forgotten by the stage."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from artifacts.errors import CannotFit
from stages.process.events import NOT_ANSWERED, EventReporter, Failed, Returned, TooLarge, event_of
from stages.process.requests import (
    BEGUN,
    End,
    Make,
    Message,
    Request,
    RequestPipe,
    Requests,
    Withdraw,
    line_of_message,
    message_of_line,
)

SECONDS = 10.0


class Item(NamedTuple):
    """What a stage is asked for."""

    key: str
    text: str = ""


class Desk:
    """A pipe to a stage, and what the stage answers."""

    def __init__(self, folder: Path) -> None:
        self.pipe = RequestPipe(folder / "pipe")
        self._events, events = os.pipe()
        self.report = EventReporter(events)

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.pipe.send(message)
        assert self.pipe.write(), "the pipe took less"

    def requests(self, *, for_clients: bool = True) -> Requests[Item]:
        return Requests(str(self.pipe.path), Item, self.report, for_clients=for_clients)

    def events(self) -> list[Any]:
        """What was answered since the last call."""
        os.set_blocking(self._events, False)
        try:
            lines = os.read(self._events, 1 << 16).decode().splitlines()
        except BlockingIOError:
            return []
        return [*map(event_of, lines)]

    def close(self) -> None:
        self.pipe.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with closing(Desk(tmp_path)) as made:
        yield made


def make(*keys: str, number: int = 0) -> Make:
    return Make(batches=[[Item(key) for key in keys]], number=number)


def keys_of(batches: list[list[Request[Item]]]) -> list[list[str]]:
    return [[one.item.key for one in batch] for batch in batches]


def failed(events: list[Any]) -> list[tuple[str, str]]:
    return [(event.media, event.kind) for event in events if isinstance(event, Failed)]


@pytest.mark.parametrize(
    "message",
    [Make(batches=[[["a", "\u2028\n"]], []], number=3), Withdraw(keys=["a", "b"]), End()],
)
def test_a_message_is_one_line_and_is_read_as_it_was_sent(message: Message) -> None:
    line = line_of_message(message)
    assert line.count("\n") == 1 and line.endswith("\n")
    assert message_of_line(line) == message


def test_what_was_withdrawn_before_it_began_is_not_begun_until_asked_again(desk: Desk) -> None:
    desk.send(make("a", "b"), Withdraw(keys=["a", "x"]), make("c"), Withdraw(keys=["c"]))
    desk.send(make("a"), End())
    found = desk.requests()
    found._reader.join(SECONDS)
    assert [keys_of(batches) for batches in found] == [[["b"]], [["a"]]]


def test_what_is_withdrawn_while_it_is_made_says_so(desk: Desk) -> None:
    desk.send(make("a", "b"))
    found = desk.requests()
    ((first, second),) = next(found)
    desk.send(Withdraw(keys=["a"]), make("c"), End())
    assert keys_of(next(found)) == [["c"]]
    assert (first.is_withdrawn, second.is_withdrawn) == (True, False)
    assert [*found] == [*found] == []


def test_nothing_that_follows_the_end_is_read_and_a_number_is_noted(desk: Desk) -> None:
    desk.send(make("a", number=7), make("b"), End(), make("c"))
    found = desk.requests(for_clients=False)
    assert [keys_of(batches) for batches in found] == [[["a"]], [["b"]]]
    assert [dict(event.values) for event in desk.events()] == [{BEGUN: 7}]


def test_a_line_that_is_no_message_ends_the_stage_with_an_error(desk: Desk) -> None:
    os.write(desk.pipe.descriptor, b'{"message": "Make", "batches": [["a"]]}\n')
    with pytest.raises(TypeError):
        next(desk.requests())


def forget(found: Requests[Item], desk: Desk) -> None:
    """Work on two requests as a stage does that answers the second alone."""
    ((_, second),) = next(found)
    desk.report.answered(second.item.key)


def answers_after(desk: Desk, seconds: float) -> list[Any]:
    """Return the events that the stage sends until it reports a failure, or until the seconds are
    over."""
    heard: list[Any] = []
    until = time.monotonic() + seconds
    while not failed(heard) and time.monotonic() < until:
        time.sleep(0.02)
        heard += desk.events()
    return heard


def test_a_request_that_a_stage_forgets_is_answered_while_it_waits(desk: Desk) -> None:
    desk.send(make("a", "b"))
    found = desk.requests()
    forget(found, desk)
    assert failed(answers_after(desk, SECONDS)) == [("a", NOT_ANSWERED)]


def test_one_that_the_stage_still_carries_or_has_answered_is_not(desk: Desk) -> None:
    desk.send(make("a", "b"))
    found = desk.requests()
    kept = next(found)
    assert failed(answers_after(desk, 1.0)) == []
    desk.report.send(TooLarge(key="a", wanted_bytes=0, error="out of memory"))
    desk.report.failure("b", "model", "it raises", "")
    del kept
    assert failed(answers_after(desk, 1.0)) == [("b", "model")]


def test_one_of_a_run_is_returned(desk: Desk) -> None:
    desk.send(make("a", "b"))
    forget(found := desk.requests(for_clients=False), desk)
    heard = answers_after(desk, 1.0)
    assert [event.keys for event in heard] == [("b",), ("a",)] and found
    assert isinstance(heard[-1], Returned)


def test_a_stage_that_fails_answers_none_of_its_requests(desk: Desk) -> None:
    desk.send(make("a", "b"))
    found = desk.requests()
    with pytest.raises(CannotFit), found:
        forget(found, desk)
        raise CannotFit("out of memory", hint="")
    assert failed(answers_after(desk, 1.0)) == []


def test_at_the_end_what_is_still_open_is_answered(desk: Desk) -> None:
    desk.send(make("a", "b"), make("c"), End())
    found = desk.requests()
    kept = [*found]
    desk.report.answered("a", "c")
    with found:
        pass
    found.close()
    assert failed(desk.events()) == [("b", NOT_ANSWERED)] and kept
