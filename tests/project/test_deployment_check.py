"""Deployments on a real server and worker: the bytes of the plain command, and the documented
commands as they stand. Slow, all of them."""

import sys
from pathlib import Path
from uuid import uuid4

import pytest

from scripts.run.throwaway_postgres import postgres_programs
from tests.support.commands import completed

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def script(name: str, *options: str) -> str:
    """What the script printed; it must succeed and leave no process behind."""
    mark = f"PENSTOCK_TEST={uuid4()}"
    done = completed(["env", mark, sys.executable, "-m", f"scripts.prove.{name}", *options])
    assert done.returncode == 0, done.stdout + done.stderr
    left = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if mark.encode() in environment(path)
    ]
    assert left == []
    return done.stdout


def environment(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_deployment_makes_the_plain_commands_bytes() -> None:
    message = script("deployment_check")
    assert "is Completed: 12 captions" in message
    assert "a second deployment run did no stage work" in message


@pytest.mark.skipif(postgres_programs() is None, reason="Postgres is not installed")
def test_the_deployment_makes_the_same_bytes_on_postgres() -> None:
    assert "a second deployment run did no stage work" in script("deployment_check", "--postgres")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_the_documented_commands_work_in_a_fresh_clone() -> None:
    assert "docs/deploy/README.md works as it stands" in script("follow_deploy")


def test_the_server_runs_the_nightly_rebuild_by_itself_and_only_what_changed_is_encoded() -> None:
    assert "the model was changed: 3 files" in script("deployment_check", "--nightly")


def test_runs_end_complete_when_a_stage_a_flow_or_the_server_is_killed() -> None:
    """`python -m scripts.prove.fault_check` kills everything else, too."""
    printed = script("fault_check", "--moments", "1", "--kinds", "child,flow,server")
    assert "3 of 3 moments: complete" in printed
