"""The whole program on a folder of good and bad files: what comes out, what a second run does, and
that a run stops at a signal, wherever Python is when it comes."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import penstock_demo
from artifacts.errors import CannotFit, Interrupted
from flows.core.console.interrupts import repeating_dropped_interrupts
from flows.execution.pipeline_runner import PipelineRunner
from flows.execution.run import stopped_in_order
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import load_record
from penstock_demo.clips import write_clips
from tests.support.commands import completed
from tests.support.media import write_audio, write_video
from tests.support.pipeline import ROOT, SECONDS, Place

BAD = {"text.mp4": "not-media", "empty.mp4": "empty", "sound.mp4": "no-video"}
GOOD = ["clip-001.mp4", "long.mp4", "photo.png"]
OPTIONS = ("--chunk", "2", "--format", "txt,vtt", "--keep-frames", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder of three good files and three bad ones, captioned once."""
    root = tmp_path_factory.mktemp("sequence")
    clips = root / "clips"
    (truth,) = write_clips(clips, 1, seed=5)
    (clips / truth.file).rename(clips / "clip-001.mp4")
    write_video(clips / "long.mp4", ticks=range(50), time_base=Fraction(1, 10))
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(clips / "photo.png")
    (clips / "text.mp4").write_text("not a video")
    (clips / "empty.mp4").write_bytes(b"")
    write_audio(clips / "sound.mp4")
    made = Place(clips=clips, out=root / "out", store=root / "store")
    done = made.run(*OPTIONS, str(root / "gone.mp4"))
    assert done.returncode == 1, done.stderr
    return made


@pytest.mark.slow
def test_every_good_file_is_captioned_over_its_whole_length(place: Place) -> None:
    rows = place.captions()
    assert [r["media_path"] for r in rows if r["start"] == 0] == GOOD
    long = [(r["start"], r["end"]) for r in rows if r["media_path"] == "long.mp4"]
    assert long == [(0.0, 2.0), (2.0, 4.0), (4.0, 5.0)]
    (photo,) = [r for r in rows if r["media_path"] == "photo.png"]
    assert (photo["start"], photo["end"], photo["frames"]) == (0.0, 0.0, [0.0])
    assert photo["prompt"] == "Describe this image in detail."
    assert all(r["caption"] and r["tokens"] > 0 for r in rows)


def test_every_bad_file_is_one_line_with_what_to_do(place: Place) -> None:
    found = {f["media_path"]: f for f in place.failures()}
    assert {Path(name).name for name in found} == {*BAD, "gone.mp4"}
    assert {name: found[name]["error"] for name in BAD} == BAD
    assert found[str(place.clips.parent / "gone.mp4")]["stage"] == "sources"
    for failure in found.values():
        assert failure["message"] and failure["hint"]
        assert "\n" not in failure["message"] + failure["hint"]


def test_the_record_says_what_each_stage_did(place: Place) -> None:
    stages = place.stages()
    chunks = len(place.captions())
    assert [stages[name]["items"] for name in ("frames", "encode", "decode")] == [chunks] * 3
    for stage in stages.values():
        assert stage["seconds"] > 0
        assert stage["peak_host_bytes"] > 10 << 20
        assert len(stage["timeline"][0]) == 3
    assert stages["decode"]["tokens"] == sum(r["tokens"] for r in place.captions())
    assert stages["encode"]["notes"]["attention"] == "sdpa"


@pytest.mark.slow
def test_a_second_run_does_no_work_and_tells_events_alone(place: Place, tmp_path: Path) -> None:
    again = replace(place, out=tmp_path / "out")
    # How much memory there is decides no byte.
    done = again.run(*OPTIONS, "--memory", "3GiB", "--json")
    assert done.returncode == 1
    assert all("event" in json.loads(line) for line in done.stdout.splitlines())
    assert again.captions() == place.captions()
    assert [s["processes"] for s in again.stages().values()] == [0, 0, 0]
    assert [s["before"] for s in again.stages().values()] == [len(place.captions())] * 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_another_prompt_opens_no_media_file(place: Place, tmp_path: Path) -> None:
    again = replace(place, out=tmp_path / "out")
    trace = tmp_path / "trace"
    traced = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", str(trace)]
    done = completed([*traced, *again.command(*OPTIONS, "--prompt", "What happens?")])
    assert done.returncode == 1, done.stderr
    stages = again.stages()
    assert [stages[name]["processes"] for name in ("frames", "encode", "decode")] == [0, 0, 1]
    opened = trace.read_text(errors="replace")
    assert "captions.jsonl" in opened or ".penstock-" in opened, "strace saw nothing"
    for name in os.listdir(place.clips):
        assert f"{place.clips}/{name}" not in opened
    assert {r["prompt"] for r in again.captions()} == {"What happens?"}
    assert [r["features"] for r in again.captions()] == [r["features"] for r in place.captions()]


@pytest.mark.slow
def test_a_damaged_record_is_made_again_by_the_same_run(place: Place, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(place.store, store)
    shutil.rmtree(store / "captions")
    bad = sorted((store / "features").rglob("*.pack"))[0]
    data = bytearray(bad.read_bytes())
    data[-1] ^= 0xFF
    bad.write_bytes(bytes(data))
    again = replace(place, out=tmp_path / "out", store=store)
    done = again.run(*OPTIONS)
    assert done.returncode == 1, done.stderr
    assert again.captions() == place.captions()
    assert again.stages()["encode"]["items"] > 0
    assert list((store / "quarantine").rglob("*.pack"))


def test_the_record_says_how_what_comes_after_the_media_ends(tmp_path: Path) -> None:
    record = RecordWriter(tmp_path)
    steps: Any = SimpleNamespace(stop=lambda: None)
    runner = PipelineRunner(SimpleNamespace(), steps, record)  # type: ignore[arg-type]
    record.finish("done")
    with runner.keep_running():
        assert load_record(tmp_path).state == "running"
    assert load_record(tmp_path).state == "done"
    with pytest.raises(CannotFit), runner.keep_running():
        raise CannotFit("too large")
    ended = load_record(tmp_path)
    assert (ended.state, ended.error) == ("failed", "too large")
    with pytest.raises(Interrupted), runner.keep_running():
        raise Interrupted("stopped")
    assert load_record(tmp_path).state == "interrupted"


@pytest.mark.slow
def test_a_closed_terminal_ends_a_run_in_order(tmp_path: Path) -> None:
    fresh = Place(clips=penstock_demo.CLIPS, out=tmp_path / "out", store=tmp_path / "store")
    # Enough to do for the run to be met at work, however busy the machine is.
    command = fresh.command("--batch-size", "1", "--limit", "6", "--chunk", "0.2")
    ours, its = os.openpty()

    def begin() -> None:
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    options: Any = {"stdin": its, "stdout": its, "stderr": its, "start_new_session": True}
    running = subprocess.Popen(command, cwd=ROOT, preexec_fn=begin, **options)
    os.close(its)
    text = b""
    while not (fresh.out / "logs" / "encode.items.jsonl").exists():
        text += os.read(ours, 4096)
    os.close(ours)
    assert running.wait(SECONDS) == 4 and b"Traceback" not in text
    assert json.loads((fresh.out / "run.json").read_text())["state"] == "interrupted"
    assert (fresh.out / "captions.jsonl").exists()
    assert completed(command, timeout=SECONDS).returncode == 0
    assert not [key for key, count in fresh.journal("encode").items() if count > 1]


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """What handles signals is as it was before the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_each_signal_of_stopping_is_an_interruption(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match="Finished work is kept"), stopped_in_order():
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 1.0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if number == signal.SIGHUP:  # it comes twice
        os.kill(os.getpid(), number)


def test_who_takes_a_signal_already_keeps_it() -> None:
    taken: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: taken.append(number))
    with stopped_in_order():
        os.kill(os.getpid(), signal.SIGHUP)
    assert taken == [signal.SIGHUP]


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

    record = RecordWriter(tmp_path)
    monkeypatch.setattr("artifacts.disk.files.os.replace", interrupted_after)
    with pytest.raises(Interrupted), stopped_in_order():
        record.begin("encode")


def test_a_repeat_while_the_first_is_noted_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = threading.Event()

    class Late(threading.Timer):
        def start(self) -> None:
            super().start()
            noted.wait(0.2)  # on a busy machine the repeat comes before the hook has returned

    monkeypatch.setattr("flows.core.console.interrupts.threading.Timer", Late)
    with pytest.raises(Interrupted), stopped_in_order():
        Signalling(signal.SIGINT)
        threading.Event().wait(20)


def test_a_signal_that_is_dropped_at_the_end_stops_the_run_and_nothing_after_it() -> None:
    with pytest.raises(Interrupted), stopped_in_order():
        Signalling(signal.SIGINT)
    threading.Event().wait(0.1)  # would be interrupted


def test_of_two_that_repeat_only_the_inner_one_does() -> None:
    heard: list[int] = []

    def stop(number: int, _: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    outer, inner = repeating_dropped_interrupts(stop), repeating_dropped_interrupts(stop)
    with pytest.raises(KeyboardInterrupt), outer, inner:
        Signalling(signal.SIGINT)
        threading.Event().wait(20)
    threading.Event().wait(0.1)
    assert len(heard) == 2, "the one that was dropped, and its repeat"


def test_a_signal_is_not_repeated_to_the_handler_of_another() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    with pytest.raises(Interrupted), stopped_in_order():
        Signalling(signal.SIGTERM)
        threading.Event().wait(20)
    assert heard == []


def test_other_ignored_exceptions_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("lost")

    dropped: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", dropped.append)
    before = sys.unraisablehook
    with stopped_in_order():
        assert sys.unraisablehook is not before
        Failing()
    assert [str(each.exc_value) for each in dropped] == ["lost"] and sys.unraisablehook is before


def test_threads_leave_the_hook_of_the_process_alone() -> None:
    before, inside = sys.unraisablehook, []

    def run() -> None:
        with stopped_in_order():
            inside.append(sys.unraisablehook)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before] and sys.unraisablehook is before
