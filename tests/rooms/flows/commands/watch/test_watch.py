"""Which changes of a folder start a run of a watched command."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.commands.watch.watch import Watch
from flows.core.options.commands import CaptionConfig
from tests.support.disks import mount, small_disk

RUN = ["--version"]
"""A command that ends with exit code 0."""


def watch_of(folder: Path, out: Path) -> Watch:
    config = CaptionConfig(sources=(str(folder),), model="demo", out=str(out), min_age=0.0)
    return Watch(words=RUN, config=config, every=1.0)


def started(watch: Watch, capfd: pytest.CaptureFixture[str]) -> str:
    """Look once, and return what was printed."""
    watch.look()
    return capfd.readouterr().err


def test_a_file_that_left_and_came_back_starts_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")
    watch = watch_of(folder, tmp_path / "out")
    assert "2 files (a.png, b.png)" in started(watch, capfd)
    shutil.move(folder / "a.png", tmp_path / "a.png")
    assert started(watch, capfd) == "", "a file that is gone starts none"
    (folder / "c.png").write_bytes(b"x")
    assert "1 file new or changed (c.png)" in started(watch, capfd)
    shutil.move(tmp_path / "a.png", folder / "a.png")
    assert "1 file new or changed (a.png)" in started(watch, capfd)
    assert started(watch, capfd) == ""


@pytest.mark.parametrize("inside", ["", "out"])
def test_no_run_writes_below_the_mount_point_of_an_output_folder_that_is_away(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], inside: str
) -> None:
    (folder := tmp_path / "in").mkdir()
    (folder / "a.png").write_bytes(b"x")
    with small_disk(tmp_path / "disk", "1m") as disk:
        watch = watch_of(folder, disk / inside)
        assert "1 file (a.png)" in started(watch, capfd)
        subprocess.run(["umount", str(disk)], check=True)
        (folder / "b.png").write_bytes(b"x")
        assert started(watch, capfd) == f"waiting for {disk}: not mounted (tmpfs)\n"
        assert started(watch, capfd) == "", "that is said once"
        subprocess.run(mount("size=1m", disk), check=True)
        assert "1 file new or changed (b.png)" in started(watch, capfd)


def test_an_output_folder_that_was_deleted_is_made_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "in").mkdir()
    (folder / "a.png").write_bytes(b"x")
    (out := tmp_path / "out").mkdir()
    watch = watch_of(folder, out)
    assert "1 file (a.png)" in started(watch, capfd)
    os.rmdir(out)
    (folder / "b.png").write_bytes(b"x")
    assert "1 file new or changed (b.png)" in started(watch, capfd)
