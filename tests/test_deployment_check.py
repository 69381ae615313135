"""A deployment on a real server and worker makes the bytes of the plain command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_deployment_makes_the_plain_commands_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/deployment_check.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deployment run Completed" in done.stdout
    assert "a second deployment run did no stage work" in done.stdout
    left = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if b"PENSTOCK_DEPLOYMENT_CHECK=" in environment(path)
    ]
    assert left == []


def environment(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
