"""The store in a folder, and who makes what among processes that share one."""

import ctypes
import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk import paths
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.claims import Claims, WorkClaims, claims_at
from artifacts.records.packs import Record, RecordSet, half_written_in
from artifacts.records.store import FolderStore, open_store
from artifacts.records.stores.local import clock_of, half_written, state_folder
from tests.support.faults import failing
from tests.support.pipeline import ROOT


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("nearby", "folder", "advice"),
    [
        ("other", "store", "choose another folder"),
        ("other", "penstock-out", "choose another folder"),
        ("other", "penstock-search-abcd_123/store", "set TMPDIR to a folder elsewhere"),
        ("", "store", "set PENSTOCK_NEARBY to a folder elsewhere"),
    ],
)
def test_a_full_disk_gives_what_moves_the_folder(
    nearby: str, folder: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path / folder)
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / nearby))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(EnvironmentFault, match=r"is full, or your quota on it\. Free") as raised:
        store.put_if_absent("one", [b"x"])
    assert raised.value.hint == f"Free some space or {advice}; the same command then goes on"
    assert not any((store.local / "tmp").iterdir())


def test_a_store_below_a_file_fails_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EnvironmentFault, match="a file is in its place"):
        FolderStore(tmp_path / "file" / "store").check_writable()


def test_what_a_killed_writer_left_is_swept_out(store: FolderStore) -> None:
    store.check_writable()
    old, young = store.local / "tmp" / "old", store.local / "tmp" / "young"
    for half in (old, young):
        half.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.check_writable()
    assert [half.name for half in (store.local / "tmp").iterdir()] == ["young"]


WRITER = """
import sys, time
from pathlib import Path
from artifacts.records.store import FolderStore
def parts():
    yield bytes(1 << 20)
    print("half", flush=True)
    time.sleep(60)
FolderStore(Path(sys.argv[1])).put_if_absent("features/one", parts())
"""


def test_a_half_written_file_goes_when_its_writer_is_dead_not_before(store: FolderStore) -> None:
    store.check_writable()
    command: Any = {"args": [sys.executable, "-c", WRITER, store.url], "text": True}
    with subprocess.Popen(**command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "half\n"
        (half,) = (store.local / "tmp").iterdir()
        store.check_writable()
        assert half_written_in(store) == ({}, 1 << 20)
        writer.kill()
        writer.wait()
    assert half_written_in(store) == ({f"tmp/{half.name}": 1 << 20}, 0)
    (other := half.with_name(f"{half.stem}.another-boot")).write_bytes(b"half")
    store.check_writable()
    assert [*(store.local / "tmp").iterdir()] == [other], "of another machine only the age is known"


def test_without_locks_the_age_of_a_half_written_file_decides(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", failing(errno.ENOLCK))
        writing = half_written(store.local)
        half, file = writing.__enter__()
        file.write(b"half")
        file.flush()
    store.check_writable()
    assert half.exists() and half_written_in(store) == ({}, 4)
    os.utime(half, (0, 0))
    store.check_writable()
    assert not half.exists()
    writing.__exit__(None, None, None)


def test_open_store_takes_folders_and_refuses_other_addresses(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}").url == str(tmp_path)
    assert open_store(str(tmp_path)).url == str(tmp_path)
    for url in ("ftp://somewhere/store", "://store", "file://file://store", "/a/b://store"):
        with pytest.raises(UsageError, match=url):
            open_store(url)


def test_what_lies_beside_a_store_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    one, other = state_folder("memory://a"), state_folder("memory://b")
    assert one != other
    assert one.parent == other.parent == Path.home() / ".local" / "state" / "penstock" / "stores"


@pytest.mark.parametrize("has_rename", [True, False])
@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV])
def test_without_hard_links_the_first_writer_s_object_stays(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, code: int, has_rename: bool
) -> None:
    monkeypatch.setattr(os, "link", failing(code))
    if not has_rename:
        monkeypatch.setattr(paths, "_renameat2", lambda: lambda *_: -1)
        reported = errno.EINVAL if code == errno.EXDEV else code
        monkeypatch.setattr(ctypes, "get_errno", lambda: reported)

    def late() -> Iterator[bytes]:
        yield b"second"
        assert store.put_if_absent("one", [b"first"])  # between the look and the naming

    assert not store.put_if_absent("one", late())
    assert store.get("one") == b"first"


def test_a_half_outlives_a_clock_ahead(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 7200)

    def slow() -> Iterator[bytes]:
        store.check_writable()  # another machine's run begins
        yield b"x"

    assert store.put_if_absent("one", slow())
    assert abs(clock_of(store.local) - clock()) < 60


def test_what_is_no_file_is_neither_listed_nor_waited_for(store: FolderStore) -> None:
    store.put_if_absent("a/one", [b"x"])
    os.mkfifo(store.local / "a" / "pipe")
    (store.local / "a" / "back").symlink_to(store.local)
    assert list(store.list()) == ["a/one"]
    with pytest.raises(EnvironmentFault, match="pipe cannot be read"):
        store.get("a/pipe")


def test_a_linked_folder_is_part_of_a_store(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "disk" / "x").mkdir(parents=True)
    (tmp_path / "disk" / "x" / "one").write_bytes(b"x")
    store.local.mkdir()
    (store.local / "a").symlink_to(tmp_path / "disk")
    assert list(store.list()) == ["a/x/one"]


HOLDER = """
import sys, time
from pathlib import Path
from artifacts.records.claims import Claims
assert Claims(Path(sys.argv[1])).take(sys.argv[2:])
print("held", flush=True)
time.sleep(60)
"""


def test_a_key_is_claimed_once_and_all_of_them_or_none(tmp_path: Path) -> None:
    first, second = Claims(tmp_path / "c"), Claims(tmp_path / "c")
    assert first.take(["b"])
    assert not second.take(["a", "b", "c"])
    assert first.take(["a", "c"])  # the second let go of what it had
    first.release(["a", "b", "c"])
    assert second.take(["a", "b", "c"])
    first.close()
    second.close()


def test_a_killed_process_claims_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "c"), "k"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
    mine = Claims(tmp_path / "c")
    assert not mine.take(["k"])
    holder.kill()
    holder.wait()
    assert mine.take(["k"])
    mine.close()


def test_only_what_others_published_is_news(tmp_path: Path) -> None:
    first, second = Claims(tmp_path / "c"), Claims(tmp_path / "c")
    assert first.has_news() and not first.has_news()
    first.published()
    assert not first.has_news()
    assert second.has_news() and not second.has_news()
    second.published()
    assert first.has_news()
    first.close()
    second.close()


def test_what_another_gave_up_is_made(store: FolderStore) -> None:
    ours = RecordSet(store, "k", "s")
    with claims_at(store, ours) as mine, claims_at(store, RecordSet(store, "k", "s")) as other:
        assert other.take(lambda: ["a"])
        given_up = threading.Timer(0.1, other.done, [["a"]])
        given_up.start()
        assert list(mine.claimed_batches([["a"]], lambda batch: batch)) == [["a"]]
        given_up.join()


def test_who_waits_for_another_ends_with_its_own_work(store: FolderStore) -> None:
    ours, found = RecordSet(store, "k", "s"), list[list[str]]()
    with claims_at(store, RecordSet(store, "k", "s")) as other:
        assert other.take(lambda: ["a"])
        with claims_at(store, ours) as mine:
            batches = mine.claimed_batches([["a"]], lambda batch: batch)
            waiting = threading.Thread(target=lambda: found.extend(batches))
            waiting.start()
            mine.end()
            waiting.join(5)
            assert not waiting.is_alive() and found == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_all_is_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    first, second = Claims(tmp_path / "c"), Claims(tmp_path / "c")
    monkeypatch.setattr(fcntl, "fcntl", failing(code))
    assert first.take(["a"]) and second.take(["a"])
    first.close()
    second.close()


def test_a_claim_that_cannot_be_opened_is_named_and_neither_granted_nor_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentFault, match=f"{tmp_path}/file/c cannot be made"):
        Claims(tmp_path / "file" / "c")
    (tmp_path / "c").write_bytes(b"")
    of_another = failing(
        errno.EACCES, os.open, lambda path, flags, *_: flags & os.O_ACCMODE != os.O_RDONLY
    )
    monkeypatch.setattr(os, "open", of_another)
    with pytest.raises(EnvironmentFault, match=f"{tmp_path}/c cannot be written"):
        Claims(tmp_path / "c")


def test_a_lock_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claims(tmp_path / "c")
    refusing = failing(errno.EBADF, fcntl.fcntl, lambda _, how, *more: how == fcntl.F_OFD_SETLK)
    monkeypatch.setattr(fcntl, "fcntl", refusing)
    with pytest.raises(EnvironmentFault, match=f"{tmp_path}/c"):
        claim.take(["a"])
    claim.close()


def test_threads_of_a_stage_look_at_the_record_set_before_they_claim(store: FolderStore) -> None:
    ours, theirs = RecordSet(store, "k", "s"), RecordSet(store, "k", "s")
    claim = Claims(store.local / "claims" / "x")
    turns = WorkClaims(claim, [ours])
    theirs.publish([Record(key="a")])
    assert turns.take(lambda: [key for key in ["a"] if key not in ours]) is False
    claim.close()
