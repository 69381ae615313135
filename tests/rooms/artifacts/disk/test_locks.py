"""Locks on file systems that lack them, and locks that other processes hold."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.disk.locks import lock, lock_byte
from tests.support.faults import failing


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def answer(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let the file system answer each lock with this error."""
    monkeypatch.setattr(fcntl, "flock", failing(code))
    refusing = failing(code, fcntl.fcntl, lambda file, how, *more: bool(more))
    monkeypatch.setattr(fcntl, "fcntl", refusing)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENOLCK])
def test_a_file_system_without_locks_holds_nobody_up(
    file: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    answer(monkeypatch, code)
    assert lock(file) is None
    assert lock_byte(file, fcntl.F_WRLCK, 0)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_byte_that_another_process_holds_is_not_granted(
    file: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    answer(monkeypatch, code)
    assert not lock_byte(file, fcntl.F_WRLCK, 0)


def test_another_error_of_a_lock_names_the_file(
    file: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=str(tmp_path / "lock")):
        lock(file)
    with pytest.raises(OSError, match=str(tmp_path / "lock")):
        lock_byte(file, fcntl.F_WRLCK, 0)
