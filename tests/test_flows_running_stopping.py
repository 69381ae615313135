import fcntl
import json
import os
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

import penstock_demo
from artifacts.errors import Interrupted
from flows.running.stopping import stopped_in_order
from tests.support.pipeline import ROOT, SECONDS, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(clips=penstock_demo.CLIPS, out=tmp_path / "out", store=tmp_path / "store")


def in_terminal(place: Place, before: Callable[[], object], *more: str) -> int:
    """Run it in a terminal of its own that is closed once something was encoded; its exit code."""
    ours, its = os.openpty()

    def begin() -> None:
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)
        before()

    running = subprocess.Popen(
        place.command(*more),
        cwd=ROOT,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=begin,
    )
    os.close(its)
    journal = place.out / "logs" / "encode.items.jsonl"
    said = b""
    while not journal.exists():
        said += os.read(ours, 4096)
    os.close(ours)
    code = running.wait(SECONDS)
    assert b"Traceback" not in said
    return code


MANY = ("--batch-size", "1", "--limit", "6", "--chunk", "0.2")
"""Options that give a run enough to do for it to be met at work, however busy the machine is."""


@pytest.mark.slow
def test_a_closed_terminal_ends_a_run_in_order(place: Place) -> None:
    assert in_terminal(place, lambda: None, *MANY) == 4
    record = json.loads((place.out / "run.json").read_text())
    assert record["state"] == "interrupted"
    assert (place.out / "captions.jsonl").exists()
    assert place.run(*MANY).returncode == 0
    assert not [key for key, count in place.journal("encode").items() if count > 1]


@pytest.mark.slow
def test_under_nohup_a_run_outlives_its_terminal(place: Place) -> None:
    code = in_terminal(place, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert code == 0
    assert len(place.captions()) == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_each_signal_of_stopping_is_an_interruption(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        with pytest.raises(Interrupted, match="Nothing finished is lost"), stopped_in_order():
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 1.0)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if number == signal.SIGHUP:  # it comes twice
            os.kill(os.getpid(), number)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_takes_a_signal_already_keeps_it() -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: taken.append(number))
    try:
        with stopped_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert taken == [signal.SIGHUP]
