"""How long a running job counts as one: by its lock, and by its lease where no lock tells."""

import errno
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.store import FolderStore
from artifacts.stores.local import clock_of
from flows.machine import leases
from flows.machine.leases import leased, running_jobs
from flows.upkeep.cache import collect
from tests.support.holders import held_elsewhere

HELD, FREE = "aa" * 32, "bb" * 32


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def holder(store: FolderStore) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the namespace HELD."""
    with held_elsewhere(store, HELD) as process:
        yield process


def test_a_claim_ends_with_its_block_and_does_not_count_against_itself(store: FolderStore) -> None:
    store.check_writable()
    with leased(store, [HELD], Path("one")) as mine:
        assert not mine.shares(HELD)
        with leased(store, [HELD, FREE], Path("two")) as other:
            assert mine.shares(HELD) and other.shares(HELD) and not other.shares(FREE)
        assert not mine.shares(HELD)
    assert running_jobs(store) == []


def refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_mount_that_locks_nothing_can_hold_a_job(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch, errno.ENOSYS)
    with leased(store, [HELD], tmp_path):
        assert [job.namespaces for job in running_jobs(store)] == [{HELD}]
    assert running_jobs(store) == []


def test_a_dead_claim_ends_where_no_lock_tells(
    store: FolderStore, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (store.local / "jobs").iterdir()
    for code in (errno.ENOSYS, errno.EBADF, errno.ENOLCK):
        refuse_locks(monkeypatch, code)
        assert len(running_jobs(store)) == 1
    holder.kill()
    holder.wait()
    assert running_jobs(store) == [] and not path.exists()


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize(("age", "running"), [(600, 1), (86400, 0)])
def test_another_machine_s_claim_is_a_lease(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, age: int, running: int, locks: bool
) -> None:
    path = store.local / "jobs" / "one.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "elsewhere", "scopes": [HELD]}))
    when = clock_of(store.local) - age
    os.utime(path, (when, when))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 90 * 86400)  # ours is far behind
    if not locks:
        refuse_locks(monkeypatch, errno.EBADF)
    assert [job.namespaces for job in running_jobs(store)] == [{HELD}] * running
    assert path.exists() == bool(running)


def test_a_lock_is_asked_for_on_a_file_that_may_be_written(
    store: FolderStore, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def as_nfs(descriptor: int, how: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    assert len(running_jobs(store)) == 1
    holder.kill()
    holder.wait()
    assert running_jobs(store) == []


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"[1]", b"5", b'{"scopes": 5}', b'{"scopes": [[]]}', b"[" * 100_000, b""]
)
def test_a_claim_that_is_none_stops_nobody(store: FolderStore, text: bytes) -> None:
    path = store.local / "jobs" / "odd.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    os.mkfifo(path.with_name("pipe.json"))
    path.with_name("folder.json").mkdir()
    collect(store, 0, dry_run=False)
    assert running_jobs(store) == []


def test_a_job_shows_that_it_lives(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    with leased(store, [HELD], tmp_path):
        (path,) = (store.local / "jobs").iterdir()
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
