"""A run stops at a signal, wherever Python is when it comes."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from artifacts.errors import Interrupted
from flows.console.interrupts import repeating_dropped_interrupts
from flows.results.run_record import RunRecord
from flows.running.stopping import stopped_in_order


class Signalling:
    """Its finalizer is interrupted by a signal; Python ignores exceptions there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_python_drops_still_stops_the_run(number: int) -> None:
    ended = False
    with pytest.raises(Interrupted), stopped_in_order():
        Signalling(number)
        threading.Event().wait(20)
        ended = True
    assert not ended


def test_a_signal_while_the_run_record_is_replaced_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted_after(half: str, path: Path) -> None:
        replace(half, path)
        signal.raise_signal(signal.SIGINT)

    record = RunRecord(tmp_path)
    monkeypatch.setattr("artifacts.files.os.replace", interrupted_after)
    with pytest.raises(Interrupted), stopped_in_order():
        record.begin("encode")


def test_a_signal_that_is_dropped_at_the_end_stops_the_run_and_nothing_after_it() -> None:
    with pytest.raises(Interrupted), stopped_in_order():
        Signalling(signal.SIGINT)
    threading.Event().wait(0.1)  # would be interrupted


def test_of_two_that_repeat_only_the_inner_one_does() -> None:
    heard: list[int] = []

    def stop(number: int, _: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            repeating_dropped_interrupts(stop),
            repeating_dropped_interrupts(stop),
        ):
            Signalling(signal.SIGINT)
            threading.Event().wait(20)
        threading.Event().wait(0.1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(heard) == 2, "the one that was dropped, and its repeat"


def test_a_signal_is_not_repeated_to_the_handler_of_another() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        with pytest.raises(Interrupted), stopped_in_order():
            Signalling(signal.SIGTERM)
            threading.Event().wait(20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == []


def test_other_ignored_exceptions_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("lost")

    told: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: told.append(str(dropped.exc_value)))
    before = sys.unraisablehook
    with stopped_in_order():
        assert sys.unraisablehook is not before
        Failing()
    assert told == ["lost"] and sys.unraisablehook is before


def test_threads_leave_the_hook_of_the_process_alone() -> None:
    before, inside = sys.unraisablehook, []

    def run() -> None:
        with stopped_in_order():
            inside.append(sys.unraisablehook)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before] and sys.unraisablehook is before
