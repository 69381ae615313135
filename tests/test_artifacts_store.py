import ctypes
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts import placing
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.store import FolderStore, open_store
from artifacts.stores.local import clock_of, state_folder


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_a_full_disk_is_told_with_what_to_do(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match=r"is full\. Free some space"):
        store.put_if_absent("one", [b"x"])
    assert not any((store.local / "tmp").iterdir())


def test_a_store_below_a_file_fails_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EnvironmentFault, match="a file is in its place"):
        FolderStore(tmp_path / "file" / "store").check_writable()


def test_what_a_killed_writer_left_is_swept_out_and_a_living_one_s_is_not(
    store: FolderStore,
) -> None:
    store.check_writable()
    old, young = store.local / "tmp" / "old", store.local / "tmp" / "young"
    for half in (old, young):
        half.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.check_writable()
    assert [half.name for half in (store.local / "tmp").iterdir()] == ["young"]


def test_open_store_takes_folders_and_refuses_other_addresses(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}").url == str(tmp_path)
    assert open_store(str(tmp_path)).url == str(tmp_path)
    for url in ("ftp://somewhere/store", "://store", "file://file://store", "/a/b://store"):
        with pytest.raises(UsageError, match=url):
            open_store(url)


def test_what_lies_beside_a_store_that_is_no_folder_is_the_user_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    one, other = state_folder("memory://a"), state_folder("memory://b")
    assert one != other
    assert one.parent == other.parent == Path.home() / ".local" / "state" / "penstock" / "stores"


@pytest.mark.parametrize("without", [(), ("renameat2",)])
def test_without_hard_links_the_first_writer_s_object_stays(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...]
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    if without:
        monkeypatch.setattr(placing, "_renameat2", lambda: lambda *_: -1)
        monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EINVAL)

    def late() -> Iterator[bytes]:
        yield b"second"
        assert store.put_if_absent("one", [b"first"])  # between the look and the naming

    assert not store.put_if_absent("one", late())
    assert store.get("one") == b"first"


def test_a_living_writer_s_half_outlives_a_clock_that_is_ahead(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_folder_elsewhere_that_is_linked_into_a_store_is_part_of_it(
    store: FolderStore, tmp_path: Path
) -> None:
    (tmp_path / "disk" / "x").mkdir(parents=True)
    (tmp_path / "disk" / "x" / "one").write_bytes(b"x")
    store.local.mkdir()
    (store.local / "a").symlink_to(tmp_path / "disk")
    assert list(store.list()) == ["a/x/one"]
