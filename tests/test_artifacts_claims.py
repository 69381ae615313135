"""Who makes what, among processes that share a store."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.claims import Claims, Turns, turns_at
from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore

HOLDER = """
import sys, time
from pathlib import Path
from artifacts.claims import Claims
assert Claims(Path(sys.argv[1])).take(sys.argv[2:])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


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


def test_what_another_gave_up_is_made_after_all(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = RecordSet(store, "k", "s")
    with turns_at(store, ours) as mine, turns_at(store, RecordSet(store, "k", "s")) as other:
        assert other.take(lambda: ["a"])
        monkeypatch.setattr(time, "sleep", lambda _: other.done(["a"]))
        assert list(mine.mine([["a"]], lambda batch: batch)) == [["a"]]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_where_nothing_can_be_locked_everything_is_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    first, second = Claims(tmp_path / "c"), Claims(tmp_path / "c")
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert first.take(["a"]) and second.take(["a"])
    first.close()
    second.close()


def test_a_store_that_cannot_be_written_grants_everything(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    claim = Claims(tmp_path / "file" / "c")
    assert claim.take(["a"]) and claim.has_news() and not claim.has_news()
    claim.published()
    claim.close()


def test_threads_of_a_stage_look_at_the_record_set_before_they_claim(store: FolderStore) -> None:
    ours, theirs = RecordSet(store, "k", "s"), RecordSet(store, "k", "s")
    claim = Claims(store.local / "claims" / "x")
    turns = Turns(claim, [ours])
    theirs.publish([Record(key="a")])
    assert turns.take(lambda: [key for key in ["a"] if key not in ours]) is False
    claim.close()
