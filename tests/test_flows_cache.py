"""What goes from a store that is too large, what stays, and what is said of the rest."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.claims import turns_at
from artifacts.errors import UsageError
from artifacts.pack_object import verify
from artifacts.packs import Record, Shelf
from artifacts.store import FolderStore
from artifacts.stores.local import clock_of
from flows.cli.main import main
from flows.console.display import parse_size
from flows.job import holds
from flows.job.holds import holding, running_jobs
from flows.upkeep.cache import holdings
from flows.upkeep.cache_gc import collect
from tests.pipeline import ROOT, wait_gone

HELD, FREE = "aa" * 32, "bb" * 32
PAYLOAD = 10_000
HOLDER = """
import sys
from pathlib import Path
from artifacts.store import FolderStore
from flows.job.holds import holding
with holding(FolderStore(Path(sys.argv[1])), [sys.argv[2]], Path("out")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def put(store: FolderStore, kind: str, scope: str, key: str, used: float) -> Path:
    """A pack of one record that was last used so many seconds after 2001."""
    before = set(store.list(kind))
    Shelf(store, kind, scope).publish([Record(key=key, payload=key.encode() * PAYLOAD)])
    (name,) = set(store.list(kind)) - before
    os.utime(store.local / name, (used + 1e9, used + 1e9))
    return store.local / name


@pytest.fixture
def holder(store: FolderStore) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the scope HELD."""
    store.check_writable()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.local), HELD],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_least_recently_used_goes_first_and_what_is_small_goes_last(
    store: FolderStore,
) -> None:
    caption = put(store, "captions", FREE, "c", used=1)
    old, middle = (put(store, "features", FREE, key, used=at) for key, at in (("a", 2), ("b", 3)))
    frames = put(store, "frames", HELD, "f", used=4)
    sizes = {path: path.stat().st_size for path in (old, middle, frames, caption)}
    total = sum(sizes.values())
    for goes in (old, middle, frames, caption):
        made = collect(store, total - 1, dry_run=False)
        assert not goes.exists() and made.bytes == sizes.pop(goes)
        assert all(path.exists() for path in sizes)
        total -= made.bytes


def test_reading_keeps_a_pack_from_going(store: FolderStore) -> None:
    read, unread = (put(store, "features", FREE, key, used=at) for key, at in (("a", 1), ("b", 2)))
    Shelf(store, "features", FREE).read("a")
    collect(store, 15_000, dry_run=False)
    assert read.exists() and not unread.exists()


def test_a_store_below_the_size_loses_nothing_but_rubbish(store: FolderStore) -> None:
    kept = put(store, "features", FREE, "a", used=1)
    bad = put(store, "features", FREE, "b", used=2)
    bad.write_bytes(b"garbage")
    assert [fine for _, fine in verify(store)].count(False) == 1
    stale = store.local / "tmp" / "half"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    made = collect(store, 1 << 30, dry_run=False)
    assert dict(made.packs) == {"rubbish": 2}
    assert kept.exists() and not stale.exists()
    assert not any(path.is_file() for path in (store.local / "quarantine").rglob("*"))


def test_a_dry_run_says_the_same_and_deletes_nothing(store: FolderStore) -> None:
    for at in range(4):
        put(store, "features", FREE, f"{at}", used=at)
    before = list(store.list())
    told = collect(store, 25_000, dry_run=True)
    assert list(store.list()) == before
    done = collect(store, 25_000, dry_run=False)
    assert (told.packs, told.bytes) == (done.packs, done.bytes)
    assert done.packs["features"] == 2


def test_what_another_process_needs_stays_until_that_process_is_dead(
    store: FolderStore, holder: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    held = put(store, "features", HELD, "a", used=1)
    free = put(store, "features", FREE, "b", used=2)
    (job,) = running_jobs(store)
    assert job.scopes == {HELD} and str(holder.pid) in job.who
    command = ["cache", "gc", "--max", "0", "--store", store.url]
    assert main(command) == 1
    assert held.exists() and not free.exists()
    shown = capsys.readouterr().out
    assert f"process {holder.pid}" in shown and "Run it again" in shown
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    wait_gone([holder.pid])
    assert main(command) == 0
    assert not held.exists()
    assert not list((store.local / "jobs").iterdir())


def test_a_claim_ends_with_its_block_and_does_not_count_against_itself(store: FolderStore) -> None:
    store.check_writable()
    with holding(store, [HELD], Path("one")) as mine:
        assert not mine.shares(HELD)
        with holding(store, [HELD, FREE], Path("two")) as other:
            assert mine.shares(HELD) and other.shares(HELD) and not other.shares(FREE)
        assert not mine.shares(HELD)
    assert running_jobs(store) == []


def test_a_claim_of_another_machine_counts_for_a_day(store: FolderStore) -> None:
    claim = store.local / "jobs" / "x.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"host": "elsewhere", "scopes": [HELD]}))
    assert [job.scopes for job in running_jobs(store)] == [{HELD}]
    os.utime(claim, (0, 0))
    assert running_jobs(store) == []
    assert not claim.exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("200GB", 200 * 10**9), ("1.5TiB", 3 << 39), ("800 mb", 8 * 10**8), ("4096", 4096)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e3GB", "nan", "5 apples", "1.GB", "9" * 400])
def test_what_is_no_size_fails(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_ls_tells_unknown_scopes_too(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    put(store, "features", FREE, "a", used=1)
    (holding_,) = holdings(store)
    assert (holding_.kind, holding_.scope, holding_.packs) == ("features", FREE, 1)
    assert main(["cache", "ls", "--store", store.url]) == 0
    assert "features" in capsys.readouterr().out
    assert main(["cache", "ls", "--store", store.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["scope"] == FREE


def test_verify_is_exit_1_once_something_was_set_aside(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = put(store, "features", FREE, "a", used=1)
    pack.write_bytes(pack.read_bytes()[:-1] + b"?")
    command = ["cache", "verify", "--store", store.url]
    assert main(command) == 1
    assert "damaged, set aside: features/" in capsys.readouterr().out
    assert main(command) == 0


def refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_mount_that_locks_nothing_can_hold_a_job(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch, errno.ENOSYS)
    with holding(store, [HELD], tmp_path):
        assert [job.scopes for job in running_jobs(store)] == [{HELD}]
    assert running_jobs(store) == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EBADF, errno.ENOLCK])
def test_a_dead_claim_ends_where_no_lock_tells(
    store: FolderStore,
    holder: "subprocess.Popen[str]",
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    (path,) = (store.local / "jobs").iterdir()
    refuse_locks(monkeypatch, code)
    assert len(running_jobs(store)) == 1
    holder.kill()
    holder.wait()
    assert running_jobs(store) == [] and not path.exists()


@pytest.mark.parametrize(("age", "running"), [(600, 1), (30 * 86400, 0)])
def test_another_machine_s_claim_is_a_lease(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, age: int, running: int
) -> None:
    path = store.local / "jobs" / "one.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "out": "o", "scopes": [HELD]}))
    when = clock_of(store.local) - age
    os.utime(path, (when, when))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 90 * 86400)  # ours is far behind
    refuse_locks(monkeypatch, errno.EBADF)
    assert len(running_jobs(store)) == running


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
    monkeypatch.setattr(holds, "BEAT_SECONDS", 0.01)
    with holding(store, [HELD], tmp_path):
        (path,) = (store.local / "jobs").iterdir()
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_claims_of_scopes_that_no_job_holds_go_with_the_rubbish(
    store: FolderStore, holder: "subprocess.Popen[str]"
) -> None:
    for scope in (HELD, FREE):
        with turns_at(store, Shelf(store, "features", scope)) as turns:
            turns.done([])
    collect(store, 1 << 30, dry_run=False)
    left = [path.name for path in (store.local / "claims").rglob("*") if path.is_file()]
    assert left == [HELD]
