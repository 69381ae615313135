"""Stages that are forked from one process which has imported: alike to those that import for
themselves, and gone when they should be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import Killed, StageDied
from scripts.run.stage_processes import stage_of
from stages.process import fork_client
from stages.process.cpu_limit import OVERTIME
from stages.process.events import Answered, Event, EventReporter
from stages.process.fork_client import MOST_DEATHS, ForkedProcess, ForkServer
from stages.process.stage_process import StageProcess
from tests.support.started import started, until

HERE = Path(__file__)
COUNT = "PENSTOCK_TEST_IMPORTS"


def warm(job: dict[str, Any]) -> None:
    with open(os.environ[COUNT], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


def tells(job: dict[str, Any], report: EventReporter) -> None:
    print("printed")
    report.note(parent=os.getppid(), group=os.getpgid(0), name=Path("/proc/self/comm").read_text())
    report.note(open=[os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)])
    report.answered("one")


def waits(job: dict[str, Any], report: EventReporter) -> None:
    report.answered("started")
    time.sleep(600)


RAN: list[str] = []


def counts(job: dict[str, Any], report: EventReporter) -> None:
    RAN.append("counts")
    report.note(server=os.getpid(), ran=len(RAN), open=os.readlink("/proc/self/fd/1"))
    report.answered("one")


def fails(job: dict[str, Any], report: EventReporter) -> None:
    raise OSError("no such disk")


def computes(job: dict[str, Any], report: EventReporter) -> None:
    while True:
        pass


def start(
    name: str, folder: Path, forks: ForkServer, module: str = HERE.stem, **more: Any
) -> StageProcess:
    return started(module, name, folder, forks=forks, **more)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parent}:{tmp_path}:{HERE.parents[2]}")
    monkeypatch.setenv(COUNT, str(tmp_path / "imports"))
    # Of the test runner, which changes it from set-up to call.
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)


@pytest.fixture
def forks() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def begun(folder: Path, forks: ForkServer) -> StageProcess:
    """A stage that waits, and has said so."""
    heard: list[Event] = []
    running = start("waits", folder, forks, heard=heard)
    until(lambda: any(isinstance(event, Answered) for event in heard))
    return running


def is_forked(running: StageProcess) -> bool:
    return isinstance(running._process, ForkedProcess)


def server_of(forks: ForkServer) -> int:
    assert forks._process is not None
    return forks._process.pid


@pytest.mark.slow
def test_stages_share_one_import_and_are_as_they_are_alone(
    tmp_path: Path, forks: ForkServer
) -> None:
    messages = []
    for _ in range(2):
        running = start("tells", tmp_path, forks)
        assert is_forked(running)
        outcome = running.wait()
        assert outcome.items == 1 and outcome.notes["parent"] == server_of(forks)
        assert outcome.notes["group"] == running.pid and outcome.notes["name"] == "tells\n"
        assert outcome.notes["open"] == ["/dev/null", str(tmp_path / "log"), str(tmp_path / "log")]
        assert outcome.seconds > 0 and outcome.peak_host_bytes > 0
        messages.append(outcome)
    assert messages[0].cpu_seconds > messages[1].cpu_seconds  # it pays for imports
    assert (tmp_path / "log").read_text() == "printed\n" * 2
    imported = (tmp_path / "imports").read_text().split()
    assert imported[0] == str(server_of(forks))


@pytest.mark.slow
def test_a_stage_is_gone_with_the_server_and_was_killed(tmp_path: Path, forks: ForkServer) -> None:
    running = begun(tmp_path, forks)
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(Killed):
        running.wait()
    running = begun(tmp_path, forks)  # the server outlives a stage
    assert is_forked(running)
    os.kill(server_of(forks), signal.SIGKILL)
    with pytest.raises(Killed):
        running.wait()
    assert not os.path.exists(f"/proc/{running.pid}") or not stage_of(running.pid)
    again = start("tells", tmp_path, forks)
    assert not is_forked(again) and again.wait().items == 1


@pytest.mark.slow
def test_a_server_that_was_killed_starts_again_but_not_for_ever(
    tmp_path: Path, forks: ForkServer
) -> None:
    for _ in range(MOST_DEATHS):
        running = start("tells", tmp_path, forks)
        assert is_forked(running) and running.wait().items == 1
        os.kill(server_of(forks), signal.SIGKILL)
        between = start("tells", tmp_path, forks)
        assert not is_forked(between) and between.wait().items == 1
    last = start("tells", tmp_path, forks)
    assert not is_forked(last) and last.wait().items == 1


def test_memory_is_drawn_over_the_seconds_of_the_stage(tmp_path: Path, forks: ForkServer) -> None:
    code = "import time; time.sleep(0.5)\ndef run(job, report): report.answered('one')\n"
    (tmp_path / "slow_to_import.py").write_text(code)
    running = start("run", tmp_path, forks, "slow_to_import")
    assert is_forked(running)
    outcome = running.wait()
    times = [point[0] for point in outcome.timeline]  # to a hundredth
    assert 0.5 <= times[0] <= times[-1] <= outcome.seconds + 0.01


IMPORTS_FOR_LONG = """
import sys
from pathlib import Path
from stages.process.fork_client import MOST_DEATHS, ForkServer
from tests.support.started import started, until
with ForkServer() as forks:
    started("imports_for_long", "run", Path(sys.argv[1]), forks=forks)
"""


@pytest.mark.slow
def test_a_server_is_gone_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = tmp_path / "importing"
    module = "import os, time; from pathlib import Path\n"
    module += f"Path({str(importing)!r}).write_text(str(os.getpid())); time.sleep(300)\n"
    (tmp_path / "imports_for_long.py").write_text(module)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    parent = subprocess.Popen([sys.executable, "-c", IMPORTS_FOR_LONG, str(tmp_path)])
    until(lambda: importing.exists() and importing.read_text() != "")
    server = int(importing.read_text())
    assert server != parent.pid
    parent.kill()
    parent.wait()
    until(lambda: not os.path.exists(f"/proc/{server}/exe"))
    assert list((tmp_path / "tmp").iterdir()) == []  # no file with a job stays


IMPORTS_FOR_A_WHILE = """
import os, time
from pathlib import Path

ends = time.monotonic() + {seconds}
first = not Path({mark!r}).exists()
Path({mark!r}).touch()
while first and time.monotonic() < ends:
    os.stat("/") if {hangs} else sum(range(300_000))
    time.sleep({seconds} if {hangs} else 0.05)

def run(job, report):
    report.answered("one")
"""


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True])
def test_a_server_that_imports_is_waited_for_as_long_as_it_does_something(
    hangs: bool, tmp_path: Path, forks: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_client, "IDLE_SECONDS", 2.0)
    monkeypatch.setattr(fork_client, "LOOK_SECONDS", 0.2)
    seconds = 60 if hangs else 6
    code = IMPORTS_FOR_A_WHILE.format(seconds=seconds, mark=str(tmp_path / "mark"), hangs=hangs)
    (tmp_path / "imports_for_a_while.py").write_text(code)
    began = time.monotonic()
    running = start("run", tmp_path, forks, module="imports_for_a_while")
    assert is_forked(running) is not hangs
    assert hangs or time.monotonic() - began > 6
    assert running.wait().items == 1


@pytest.mark.slow
def test_a_stage_stops_when_it_is_asked_to(tmp_path: Path, forks: ForkServer) -> None:
    running = begun(tmp_path, forks)
    running.stop()
    assert running.wait_for_exit(0) and running._process.wait() == -signal.SIGTERM
    running.stop()


@pytest.mark.slow
def test_two_stages_run_beside_each_other_and_end_with_the_block(tmp_path: Path) -> None:
    with ForkServer() as forks:
        first, second = begun(tmp_path, forks), begun(tmp_path, forks)
        assert is_forked(first) and is_forked(second)
        assert stage_of(first.pid) == stage_of(second.pid) == "waits"
    for each in (first, second):
        with pytest.raises(Killed):
            each.wait()


@pytest.mark.slow
def test_a_server_that_stays_runs_stages_itself_until_one_fails(tmp_path: Path) -> None:
    staying = ForkServer(stays=True)

    def ran(name: str) -> tuple[int, int]:
        outcome = start("counts", tmp_path / name, staying).wait()
        assert outcome.items == 1 and outcome.notes["open"] == str(tmp_path / name / "log")
        assert outcome.cpu_seconds < 60
        return outcome.notes["server"], outcome.notes["ran"]

    with staying:
        first = ran("one")
        assert first == (server_of(staying), 1) and ran("two") == (first[0], 2)
        with pytest.raises(StageDied, match="no such disk"):
            start("fails", tmp_path, staying).wait()
        second = ran("three")
        assert second[1] == 1 and second[0] != first[0]
        waiting = begun(tmp_path, staying)
        assert waiting.pid == second[0]
        waiting.stop()
        assert waiting.wait_for_exit(0)
        third = ran("four")
        assert third[1] == 1 and third[0] != second[0]
        staying.leave()
        assert not os.path.exists(f"/proc/{third[0]}")
        fourth = ran("five")
        assert fourth[1] == 1
    until(lambda: not os.path.exists(f"/proc/{fourth[0]}/exe"))


def test_a_thread_that_computes_too_long_is_ended(tmp_path: Path, forks: ForkServer) -> None:
    running = start("computes", tmp_path, forks, seconds=0.3)
    assert is_forked(running)
    assert running._process.wait(60) == -OVERTIME
    running.stop()


@pytest.mark.slow
def test_no_fork_where_memory_is_short(
    tmp_path: Path, forks: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_client, "MIN_FREE_BYTES", 1 << 60)
    running = start("tells", tmp_path, forks)
    assert not is_forked(running) and forks._process is None
    assert running.wait().notes["parent"] == os.getpid()


@pytest.mark.slow
def test_no_fork_in_another_environment(
    tmp_path: Path, forks: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start("tells", tmp_path, forks)
    assert is_forked(first)
    first.wait()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    other = start("tells", tmp_path, forks)
    assert not is_forked(other) and other.wait().items == 1


@pytest.mark.slow
def test_a_server_with_threads_forks_nothing(tmp_path: Path, forks: ForkServer) -> None:
    (tmp_path / "threaded_stage.py").write_text(
        f"import threading, time\n"
        f"threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        f"from {HERE.stem} import tells\n"
    )
    running = start("tells", tmp_path, forks, "threaded_stage")
    assert not is_forked(running) and running.wait().items == 1


@pytest.mark.slow
def test_code_of_a_models_own_is_not_run_in_the_server(tmp_path: Path, forks: ForkServer) -> None:
    running = start("tells", tmp_path, forks, trust_remote_code=True)
    assert is_forked(running) and running.wait().items == 1
    assert (tmp_path / "imports").read_text().split() == [str(running.pid)]


def test_what_fails_while_imported_is_told_by_the_stage(tmp_path: Path, forks: ForkServer) -> None:
    running = start("tells", tmp_path, forks, "no_such_module")
    with pytest.raises(Exception, match="no_such_module"):
        running.wait()
