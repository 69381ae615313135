"""Killed at any moment, the same command ends with the bytes of an undisturbed run; a stage alone
that is killed costs not even the command."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from penstock_demo.clips import write_clips
from tests.support.forms import SIX, text_of
from tests.support.pipeline import Place, kill_at

CLIPS = 36
FEW = 16
"""Clips of the one moment that is not slow."""
BATCH = ("--batch-size", "2")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Place]:
    """A run that nobody disturbs, over so many clips."""

    @functools.cache
    def run(count: int) -> Place:
        folder = tmp_path_factory.mktemp("resume")
        write_clips(folder / "clips", count, seed=11)
        place = Place(clips=folder / "clips", out=folder / "out", store=folder / "store")
        done = place.run(*BATCH)
        assert done.returncode == 0, done.stderr
        return place

    return run


def moments(stage: str, count: int) -> Sequence[object]:
    """(clips, stage, item, victim) spread between the stage's first and last item."""
    found = []
    for number in range(count):
        for victim in ("child", "group"):
            item = 1 + number * (CLIPS - 8) // count
            found.append(pytest.param(CLIPS, stage, item, victim, marks=pytest.mark.slow))
    return found


@pytest.mark.parametrize(
    ("clips", "stage", "item", "victim"),
    [
        (FEW, "encode", 1, "group"),
        pytest.param(CLIPS, "decode", CLIPS // 3, "server", marks=pytest.mark.slow),
        *(moment for stage in ("frames", "encode", "decode") for moment in moments(stage, 5)),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    undisturbed: Callable[[int], Place],
    tmp_path: Path,
    clips: int,
    stage: str,
    item: int,
    victim: str,
) -> None:
    whole = undisturbed(clips)
    place = Place(clips=whole.clips, out=tmp_path / "out", store=tmp_path / "store")
    status = kill_at(place, stage, item, victim, *BATCH)
    assert status == (-9 if victim == "group" else 0)
    before = {name: place.journal(name) for name in ("frames", "encode", "decode")}
    if victim != "group":
        (killed,) = [s for s in place.stages().values() if s["processes"] == 2]
        assert killed["name"] == stage and "SIGKILL" in killed["warnings"][0]
    else:
        assert item <= before[stage].total() < clips, "the kill came after the stage's last item"
    resumed = place.run(*BATCH)
    assert resumed.returncode == 0, resumed.stderr
    for name, published in before.items():
        after = place.journal(name)
        assert set(after.values()) <= {1}, f"{name} made an item twice"
        assert after.total() <= clips
        assert place.stages()[name]["items"] == after.total() - published.total()
    assert place.captions() == whole.captions()
    for kind in ("media", "features", "captions"):
        assert place.stored(kind) == whole.stored(kind)
    assert place.stored("frames") == {}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inflight", "transformers"])
def test_a_killed_run_of_a_schema_resumes_to_the_same_bytes(engine: str, tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", FEW, seed=11)
    (tmp_path / "form.json").write_text(text_of(SIX))
    more = ["--schema", str(tmp_path / "form.json"), "--engine", engine, *BATCH]
    more += ["--temperature", "1", "--format", "parquet"]
    whole, place = (
        Place(clips=tmp_path / "clips", out=tmp_path / name, store=tmp_path / f"{name}-store")
        for name in ("whole", "killed")
    )
    assert whole.run(*more).returncode == 0
    assert kill_at(place, "decode", FEW // 3, "group", *more) == -9
    assert 0 < place.journal("decode").total() < FEW
    resumed = place.run(*more)
    assert resumed.returncode == 0, resumed.stderr
    assert place.captions() == whole.captions() and place.captions()[0]["fields"]
    assert place.stored("captions") == whole.stored("captions")
