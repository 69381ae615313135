"""scripts/run_worker.py ends the flows before the worker, whoever the worker is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.pipeline import ROOT, child_processes, wait_gone

FLOW = """
import signal, sys, time
def end(*_):
    time.sleep(0.3)  # longer than a worker takes to kill it
    print("the flow has ended", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("the flow runs", flush=True)
time.sleep(60)
"""
WORKER = f"""
import signal, subprocess, sys, time
flow = subprocess.Popen([sys.executable, "-c", {FLOW!r}])
def end(*_):
    print("the worker ends", flush=True)
    flow.kill()
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
while True:
    flow.poll()
    time.sleep(0.05)
"""
RUN = "import sys; from scripts.run_worker import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def running() -> Iterator["subprocess.Popen[str]"]:
    """The script, with a worker that has a flow."""
    # The tests themselves may be run under nohup.
    heard = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); {RUN}"
    process = subprocess.Popen(
        [sys.executable, "-c", heard, sys.executable, "-c", WORKER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "the flow runs\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_flow_has_its_exit_report_before_the_worker_ends(
    running: "subprocess.Popen[str]", number: signal.Signals
) -> None:
    running.send_signal(number)
    assert running.stdout is not None
    assert running.stdout.read().splitlines() == ["the flow has ended", "the worker ends"]
    assert running.wait(30) == 0


def test_under_nohup_a_hangup_is_none() -> None:
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {RUN}"
    worker = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); raise SystemExit(7)"
    command = [sys.executable, "-c", ignoring, sys.executable, "-c", worker]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 7


def test_a_worker_does_not_outlive_the_script(running: "subprocess.Popen[str]") -> None:
    (worker,) = child_processes(running.pid)
    flows = child_processes(worker)
    running.kill()
    wait_gone([worker], 10)
    for flow in flows:
        os.kill(flow, signal.SIGKILL)


def test_the_end_of_the_worker_is_the_end_of_the_script(running: "subprocess.Popen[str]") -> None:
    (worker,) = child_processes(running.pid)
    os.kill(worker, signal.SIGTERM)
    assert running.wait(30) == 7
