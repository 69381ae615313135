"""Killed while it asks several things, with chance: the same command ends with the bytes of an
undisturbed run."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock_demo.clips import write_clips
from tests.support.pipeline import Place, kill_at

CLIPS = 8
PROMPTS = ("--prompts", "long=Describe this video in detail.", "--prompts", "short=What is it?")
CHANCE = ("--temperature", "0.9", "--seed", "5", "--retry-loops")
OPTIONS = (*PROMPTS, *CHANCE, "--batch-size", "4")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("asked")
    write_clips(folder / "clips", CLIPS, seed=11)
    place = Place(clips=folder / "clips", out=folder / "out", store=folder / "store")
    done = place.run(*OPTIONS)
    assert done.returncode == 0, done.stderr
    return place


def moments() -> Sequence[object]:
    """(item, victim), spread over the captions."""
    slow = [
        pytest.param(item, victim, marks=pytest.mark.slow)
        for item in (1, 5, 9, 13)
        for victim in ("child", "group")
    ]
    return [pytest.param(7, "group"), *slow]


@pytest.mark.parametrize(("item", "victim"), moments())
def test_a_run_that_asks_several_things_resumes_to_the_same_bytes(
    undisturbed: Place, tmp_path: Path, item: int, victim: str
) -> None:
    place = Place(clips=undisturbed.clips, out=tmp_path / "out", store=tmp_path / "store")
    status = kill_at(place, "decode", item, victim, *OPTIONS)
    assert status == (-9 if victim == "group" else 0)
    resumed = place.run(*OPTIONS)
    assert resumed.returncode == 0, resumed.stderr
    assert set(place.journal("decode").values()) == {1}, "a caption was made twice"
    assert place.captions() == undisturbed.captions() and len(place.captions()) == 2 * CLIPS
    for kind in ("features", "captions"):
        assert place.stored(kind) == undisturbed.stored(kind)
