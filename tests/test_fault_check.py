"""Whatever is killed under a worker, the run ends complete and nothing is made twice."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kinds", ["child,flow,worker", "server,away,gone,cancel", "both"])
def test_runs_end_complete_whatever_is_killed(kinds: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.fault_check", "--moments", "2", "--kinds", kinds],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    moments = 2 * len(kinds.split(","))
    assert f"{moments} of {moments} moments: complete" in done.stdout
