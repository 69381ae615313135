"""Killed at any moment, the same command ends with the bytes of an undisturbed run; a stage alone
that is killed costs not even the command."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from demo.clips import write_clips
from tests.pipeline import Place, kill_at

CLIPS = 36
BATCH = ("--batch-size", "2")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "clips"
    write_clips(folder, CLIPS, seed=11)
    return folder


@pytest.fixture(scope="session")
def undisturbed(clips: Path) -> Place:
    place = Place(clips=clips, out=clips.parent / "out", store=clips.parent / "store")
    done = place.run(*BATCH)
    assert done.returncode == 0, done.stderr
    return place


def moments(stage: str, count: int) -> Sequence[object]:
    """(stage, item, victim) spread between the stage's first and last item; all but one are
    slow."""
    found = []
    for number in range(count):
        for victim in ("child", "group"):
            item = 1 + number * (CLIPS - 8) // count
            quick = (stage, number, victim) == ("encode", count // 2, "group")
            marks = [] if quick else [pytest.mark.slow]
            found.append(pytest.param(stage, item, victim, marks=marks))
    return found


@pytest.mark.parametrize(
    ("stage", "item", "victim"),
    [moment for stage in ("frames", "encode", "decode") for moment in moments(stage, 5)],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    undisturbed: Place, tmp_path: Path, stage: str, item: int, victim: str
) -> None:
    place = Place(clips=undisturbed.clips, out=tmp_path / "out", store=tmp_path / "store")
    status = kill_at(place, stage, item, victim, *BATCH)
    assert status == (0 if victim == "child" else -9)
    before = {name: place.journal(name) for name in ("frames", "encode", "decode")}
    if victim == "child":
        (killed,) = [s for s in place.stages().values() if s["processes"] == 2]
        assert killed["name"] == stage and "SIGKILL" in killed["warnings"][0]
    else:
        assert item <= before[stage].total() < CLIPS, "the kill came after the stage's last item"
    resumed = place.run(*BATCH)
    assert resumed.returncode == 0, resumed.stderr
    for name, published in before.items():
        after = place.journal(name)
        assert set(after.values()) <= {1}, f"{name} made an item twice"
        assert after.total() <= CLIPS
        assert place.stages()[name]["items"] == after.total() - published.total()
    assert place.captions() == undisturbed.captions()
    for kind in ("media", "features", "captions"):
        assert place.stored(kind) == undisturbed.stored(kind)
    assert place.stored("frames") == {}
