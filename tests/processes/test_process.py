"""Stages in processes of their own, and the locks that they hold."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from artifacts.disk.locks import hold as hold_lock
from artifacts.disk.locks import holder, try_hold
from artifacts.errors import EnvironmentFault, Killed, StageDied, UsageError
from stages.process.child_environment import child_environment, compiler_folder
from stages.process.device import CPU_LOCK
from stages.process.events import Answered, Event, EventReporter, Failed, Warned
from stages.process.stage_process import StageProcess
from tests.support.started import hold, started, until

Patch = pytest.MonkeyPatch
HERE = Path(__file__)
MIB = 1 << 20


# What the children of these tests run; each is named by its place in this file.
def works(job: dict[str, Any], report: EventReporter) -> None:
    print("noise on stdout")
    report.total(job["items"])
    report.note(attention="sdpa")
    for number in range(job["items"]):
        report.answered(f"key-{number}", label=f"item {number}", tokens=3)
    report.failure("digest", "no-video", "no video in it", "Give a video")


def loses_its_folder(job: dict[str, Any], report: EventReporter) -> None:
    report.answered("one")
    shutil.rmtree(job["out"])
    report.answered("two")


def takes_memory(job: dict[str, Any], report: EventReporter) -> None:
    held = hold(job["bytes"])
    time.sleep(0.2)
    del held


def refuses(job: dict[str, Any], report: EventReporter) -> None:
    raise UsageError("no such model", hint="Give another")


def breaks(job: dict[str, Any], report: EventReporter) -> None:
    raise ValueError("something inside\nwith a second line")


def waits(job: dict[str, Any], report: EventReporter) -> None:
    report.answered("started")
    time.sleep(600)


start = partial(started, HERE.stem)


@pytest.fixture(autouse=True)
def importable(monkeypatch: Patch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parent}:{HERE.parents[2]}")


def wait_for(kind: type[Any], heard: list[Event]) -> None:
    until(lambda: any(isinstance(event, kind) for event in heard))


def begun(folder: Path, heard: list[Event], **more: Any) -> StageProcess:
    """A stage that waits, and has said so."""
    process = start("waits", folder, heard, **more)
    wait_for(Answered, heard)
    return process


def gone(pid: int, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_events_reach_the_parent_and_library_noise_does_not(tmp_path: Path) -> None:
    heard: list[Event] = []
    outcome = start("works", tmp_path, heard, items=3).wait()
    assert (outcome.items, outcome.tokens) == (3, 9)
    assert outcome.notes["attention"] == "sdpa"
    assert outcome.notes["loaded_bytes"] > 0
    about = {"kind": "no-video", "message": "no video in it", "hint": "Give a video"}
    assert outcome.failures == [Failed(media="digest", **about)]
    told = [key for e in heard if isinstance(e, Answered) for key in e.keys]
    assert told == ["key-0", "key-1", "key-2"]
    assert "noise on stdout" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_peak_is_measured_as_anonymous_memory(tmp_path: Path) -> None:
    small = start("takes_memory", tmp_path, bytes=1).wait().peak_host_bytes
    large = start("takes_memory", tmp_path, bytes=200 * MIB).wait().peak_host_bytes
    assert 190 * MIB < large - small < 215 * MIB


@pytest.mark.slow
def test_an_error_of_ours_comes_back_as_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such model\. Give another"):
        start("refuses", tmp_path).wait()


@pytest.mark.slow
def test_a_foreign_error_is_told_in_one_line_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(StageDied, match="ValueError: something inside") as caught:
        start("breaks", tmp_path).wait()
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "log") in caught.value.hint
    assert "Traceback" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_killed_stage_is_resumable(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("RuntimeError: CUDA out of memory\n")  # of an earlier run
    heard: list[Event] = []
    process = begun(tmp_path, heard)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(Killed, match="SIGKILL") as caught:
        process.wait()
    assert caught.value.items == process.outcome.items == 1
    assert isinstance(heard[-1], Warned) and "SIGKILL" in heard[-1].text


@pytest.mark.slow
def test_stop_ends_a_stage(tmp_path: Path) -> None:
    process = begun(tmp_path, [])
    process.stop()
    assert gone(process.pid)
    assert process.wait_for_exit(0)


@pytest.mark.slow
def test_a_stage_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; import test_process as t\n"
        "p = t.start('waits', Path(sys.argv[1])); print(p.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child, seconds=0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


@pytest.mark.slow
def test_a_stage_holds_the_cpu_s_lock(tmp_path: Path, monkeypatch: Patch) -> None:
    path = tmp_path / "cpu.lock"
    monkeypatch.setenv(CPU_LOCK, str(path))
    first = begun(tmp_path, [], device="cpu")
    assert try_hold(path) is None
    start("works", tmp_path, items=1).wait()  # it is told of no device
    messages: list[Event] = []
    second = start("works", tmp_path, messages, items=1, device="cpu")
    wait_for(Warned, messages)
    assert messages[0] == Warned(text=f"waiting for CPU, held by process {first.pid}")
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait().items == 1
    with pytest.raises(Killed):
        first.wait()
    free = try_hold(path)
    assert free is not None
    free.close()


@pytest.mark.slow
def test_a_folder_that_goes_away_is_told_as_such(tmp_path: Path) -> None:
    heard: list[Event] = []
    out = tmp_path / "out"
    process = start("loses_its_folder", out / "logs", heard, out=str(out))
    with pytest.raises(EnvironmentFault, match=f"{out}/logs is missing") as caught:
        process.wait()
    assert "run the same command again" in caught.value.hint
    assert [key for event in heard if isinstance(event, Answered) for key in event.keys] == ["one"]


def test_a_stop_at_the_start_leaves_no_file(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.process.stage_process._fresh", interrupted)
    open_before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyboardInterrupt):
        start("works", tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= len(open_before)  # a collection may close others


@pytest.mark.slow
def test_a_stage_leaves_no_temporary_files(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = str(penstock_demo.CHECKPOINT)
    started("stages.models.inspection", "run", tmp_path, model=folder).wait()
    monkeypatch.undo()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_is_said_of_the_compiler_stands(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    assert child_environment()["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert child_environment()["TORCHINDUCTOR_CACHE_DIR"] == compiler_folder()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "TORCHINDUCTOR_CACHE_DIR" not in child_environment()
    assert not os.path.exists("/mine")


NOBODY = 65534


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


PUT: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("thesis.txt"),
    "dangling link": lambda path: path.symlink_to("not-there"),
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "socket": bind,
}


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("way", [try_hold, lambda path: hold_lock(path, print)])
def test_what_is_no_file_is_no_lock(tmp_path: Path, kind: str, way: object) -> None:
    victim, path = tmp_path / "thesis.txt", tmp_path / "penstock-GPU.lock"
    victim.write_text("years of work")
    PUT[kind](path)
    with pytest.raises(EnvironmentFault, match=f"{path.name} is a .*, but a lock must be a file"):
        way(path)  # type: ignore[operator]
    assert holder(path) == "another process"
    assert victim.read_text() == "years of work"
    assert not victim.with_name("not-there").exists()


def test_what_stands_in_a_lock_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_bytes(b"\xff\x00 no number")
    assert holder(path) == "another process"
    held = try_hold(path)
    assert held is not None
    assert path.read_text() == f"{os.getpid()}\n"
    assert try_hold(path) is None
    held.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
def test_a_lock_of_another_user_in_a_folder_of_all_is_held_by_reading() -> None:
    of_all = Path(tempfile.mkdtemp())
    of_all.chmod(0o1777)
    path = of_all / "a.lock"
    path.write_text("1\n")
    path.chmod(0o644)
    child = os.fork()
    if child == 0:  # another user
        try:
            os.setuid(NOBODY)
            held = try_hold(path)
            os._exit(0 if held is not None and not held.writable() else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_text() == "1\n"
    shutil.rmtree(of_all)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_mount_may_lock_nothing(tmp_path: Path, monkeypatch: Patch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        held = try_hold(tmp_path / "lock")
        assert held is not None
        held.close()


def test_importing_onnx_runtime_in_a_stage_leaves_no_id_of_the_machine(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """Its telemetry keeps one in the home folder, and a session in the temporary one."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.delenv("CI", raising=False)  # where it reports nothing
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "c"), "TMPDIR": str(tmp_path)}
    environment = {**child_environment(), **home}
    command = [sys.executable, "-c", "import onnxruntime"]
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
