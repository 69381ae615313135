"""A run stops at a signal, wherever Python is when it comes."""

import signal
import threading

import pytest

from artifacts.errors import Interrupted
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


def test_other_ignored_exceptions_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("lost")

    told: list[BaseException | None] = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: told.append(dropped.exc_value))
    with stopped_in_order():
        Failing()
    assert [str(error) for error in told] == ["lost"]
