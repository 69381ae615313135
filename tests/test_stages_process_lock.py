import errno
import fcntl
import os
import shutil
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault
from stages.process import lock

NOBODY = 65534


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


PUT: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("thesis.txt"),
    "dangling link": lambda path: path.symlink_to("not-there"),
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "socket": bind,
}


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("way", [lock.try_hold, lambda path: lock.hold(path, print)])
def test_what_is_no_file_is_no_lock(tmp_path: Path, kind: str, way: object) -> None:
    victim, path = tmp_path / "thesis.txt", tmp_path / "penstock-GPU.lock"
    victim.write_text("years of work")
    PUT[kind](path)
    with pytest.raises(EnvironmentFault, match=f"{path.name} is a .*, but a lock must be a file"):
        way(path)  # type: ignore[operator]
    assert lock.holder(path) == "another process"
    assert victim.read_text() == "years of work"
    assert not victim.with_name("not-there").exists()


def test_what_stands_in_a_lock_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_bytes(b"\xff\x00 no number")
    assert lock.holder(path) == "another process"
    held = lock.try_hold(path)
    assert held is not None
    assert path.read_text() == f"{os.getpid()}\n"
    assert lock.try_hold(path) is None
    held.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
def test_a_lock_of_another_user_in_a_folder_of_all_is_held_by_reading() -> None:
    of_all = Path(tempfile.mkdtemp())
    of_all.chmod(0o1777)
    path = of_all / "a.lock"
    path.write_text("1\n")
    path.chmod(0o644)
    child = os.fork()
    if child == 0:  # another user
        try:
            os.setuid(NOBODY)
            held = lock.try_hold(path)
            os._exit(0 if held is not None and not held.writable() else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_text() == "1\n"
    shutil.rmtree(of_all)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])
def test_a_mount_may_lock_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        held = lock.try_hold(tmp_path / "lock")
        assert held is not None
        held.close()
