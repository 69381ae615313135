"""The log of requests, in files that are rotated, removed, or never were files."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault
from flows.interfaces.serve.access_log import AccessLog


def test_a_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="access-log"), closing(AccessLog(str(tmp_path))):
        pass


def note(log: AccessLog, path: str) -> None:
    log.note("anna", "GET", path.encode(), 200, 1, 0.1)


def paths_in(log: Path) -> list[str]:
    return [line.split()[3] for line in log.read_text().splitlines()]


def test_a_rotated_log_goes_on_at_its_path(tmp_path: Path) -> None:
    (folder := tmp_path / "logs").mkdir()
    path, rotated = folder / "a.log", tmp_path / "a.log.1"
    with closing(AccessLog(str(path))) as log:
        note(log, "/1")
        path.rename(rotated)
        note(log, "/2")
        assert (paths_in(rotated), paths_in(path)) == (["/1"], ["/2"])
        shutil.copy(path, rotated)  # copytruncate
        os.truncate(path, 0)
        note(log, "/3")
        assert paths_in(path) == ["/3"] and b"\0" not in path.read_bytes()
        path.unlink()
        path.touch(0o640)
        note(log, "/4")
        assert paths_in(path) == ["/4"] and path.stat().st_mode & 0o777 == 0o640
        path.unlink()
        os.mkfifo(path)
        note(log, "/5")
        path.unlink()
        path.mkdir()
        note(log, "/6")
        shutil.rmtree(folder)
        note(log, "/7")
        folder.mkdir()
        note(log, "/8")
        assert paths_in(path) == ["/8"]


def test_a_log_on_a_full_device_costs_lines_and_no_error() -> None:
    with closing(AccessLog("/dev/full")) as log:
        note(log, "/1")


def test_a_fifo_without_a_reader_is_refused_and_one_with_a_reader_taken(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "fifo")
    with pytest.raises(EnvironmentFault, match="access-log"), closing(AccessLog(str(path))):
        pass
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with closing(AccessLog(str(path))) as log:
        note(log, "/1")
        assert os.read(reader, 1000).split()[3] == b"/1"
    os.close(reader)
