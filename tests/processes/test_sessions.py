"""Sessions of a notebook: each is a new machine with a new home, and only one disk stays. That disk
has neither links nor locks, and other inodes in each session, as Google Drive may have."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import penstock
from flows.outputs.folder.trust import command_in
from penstock_demo import CLIPS
from tests.support.commands import completed
from tests.support.odd_disk import DRIVE, bytes_read, odd_disk
from tests.support.pipeline import PENSTOCK, Place, kill_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
FEW = ("--frames", "2", "--max-new-tokens", "16")
NOTE = "on FUSE or CIFS"


class Sessions:
    """Sessions of one user, in folders below a root."""

    def __init__(self, root: Path) -> None:
        self.drive = root / "drive"
        self._homes = (root / f"home {number}" for number in count())

    @contextmanager
    def new(self) -> Iterator[Place]:
        """Mount the disk, with a new home, until the block ends."""
        home = next(self._homes)
        with odd_disk(self.drive, DRIVE) as disk, pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            patch.setenv("PENSTOCK_STORE", str(disk / "store"))
            for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
                patch.delenv(name, raising=False)
            yield Place(clips=disk / "clips", out=disk / "out", store=disk / "store")

    def media_bytes_read(self) -> int:
        """Return how much of the media this session has read."""
        read = bytes_read(self.drive)
        return sum(size for path, size in read.items() if path.startswith("/clips/"))


def lay(clips: Path, place: Place) -> None:
    """Copy clips to a disk that has no permissions."""
    place.clips.mkdir()
    for path in clips.iterdir():
        shutil.copyfile(path, place.clips / path.name)


def notes(place: Place) -> list[str]:
    found = json.loads((place.out / "run.json").read_text())["plan"]["notes"]
    return [note for note in found if NOTE in note]


def runs(place: Place, *words: str, code: int = 0) -> str:
    """Run a command, and return what it printed."""
    done = completed([*PENSTOCK, *words], timeout=800)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def correct(place: Place, rows: list[dict[str, Any]]) -> None:
    keys: list[Any] = [(row["media_path"], row["start"]) for row in rows]
    texts = [f"{row['caption']} Mine." for row in rows]
    assert penstock.correct(place.out, dict(zip(keys, texts, strict=True))) == len(rows) > 0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "clips"
    folder.mkdir()
    for path in sorted(CLIPS.glob("*.mp4"))[:5]:
        shutil.copy(path, folder)
    return folder


def test_each_session_goes_on_from_the_disk_and_reads_no_medium_again(
    clips: Path, tmp_path: Path
) -> None:
    undisturbed = Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")
    assert undisturbed.run(*FEW).returncode == 0
    sessions = Sessions(tmp_path)
    with sessions.new() as place:
        lay(clips, place)
        assert kill_at(place, "decode", 1, "group", *FEW) < 0
        assert sessions.media_bytes_read() > sum(path.stat().st_size for path in clips.iterdir())
    with sessions.new() as place:
        done = place.run(*FEW)
        assert done.returncode == 0, done.stderr
        assert sessions.media_bytes_read() == 0 and len(notes(place)) == 1
        texts = [[row["caption"] for row in each.captions()] for each in (place, undisturbed)]
        assert texts[0] == texts[1]
        for kind in ("features", "captions"):
            assert place.stored(kind) == undisturbed.stored(kind)
        correct(place, place.captions()[:-1])
    with sessions.new() as place:
        correct(place, place.captions()[-1:])
        command = command_in(place.out)
        runs(place, *command.words, "--format", "txt")  # as Write does
        assert all(row["caption"].endswith(" Mine.") for row in place.captions())
        assert place.stages()["decode"]["items"] == 0
        printed = runs(place, "learn", str(place.out), "--anyway", "--steps", "2")
        assert "round 1" in printed and sessions.media_bytes_read() == 0


def test_a_folder_of_another_user_is_none_of_mine_in_a_new_session(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions(tmp_path)
    with sessions.new() as place:
        lay(clips, place)
        assert place.run("--limit", "1", *FEW).returncode == 0
    with sessions.new() as place:
        monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "mine"))
        printed = runs(place, "learn", str(place.out), "--anyway", code=2)
        assert "was not written by a command of this user" in printed


def test_media_are_read_again_when_that_is_requested(clips: Path, tmp_path: Path) -> None:
    sessions, more = Sessions(tmp_path), ("--limit", "2", *FEW)
    with sessions.new() as place:
        lay(clips, place)
        assert place.run(*more).returncode == 0
    with sessions.new() as place:
        assert place.run("--check-media", *more).returncode == 0
        taken = sorted(path.name for path in clips.iterdir())[:4:2]  # spread over the five
        sizes = {f"/clips/{name}": (clips / name).stat().st_size for name in taken}
        assert {k: v for k, v in bytes_read(sessions.drive).items() if k in sizes} == sizes
        assert not notes(place)
