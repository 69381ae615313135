"""Captions that are decoded while other chunks are encoded, on a simulated GPU: the same bytes as
one stage after the other, whatever is killed or runs out of memory."""

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import gpus
from tests.support.media import write_video
from tests.support.pipeline import Place, read_lines
from tests.support.slow_desk import Desk
from tests.support.slow_tower import KILL, OUT_OF_MEMORY

CHUNKS = 9
ONE_BY_ONE = ("--memory", "500MiB")
"""A half takes 0.33 GiB, most of it the driver's."""


class OneCard(Desk):
    """A user at a machine with one GPU, on which cutting, encoding and prompts are slow."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "0.2", "--chunk", "1")
        self.clips.mkdir()
        for at in range(2):
            write_video(self.clips / f"{at}.mp4", ticks=range((4 + at) * 30), gop=15 + at)
        self._alone: dict[Sequence[str], Place] = {}

    def caption(self, place: Place, *more: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        return self.run(place, gpus.plain(), *more, **extra)

    def in_one_wave(self, device: str) -> Place:
        """A run that is not disturbed."""
        if (device,) not in self._alone:
            place = self._alone[device,] = self.place(f"one-{device}")
            done = self.run(place, gpus.plain() if device == "gpu" else None)
            assert done.returncode == 0, done.stderr
        return self._alone[device,]

    def alone(self, *more: str) -> Place:
        """A run whose halves did not fit into memory together."""
        if more not in self._alone:
            place = self.place(f"alone{len(self._alone)}")
            done = self.caption(place, *more, *ONE_BY_ONE)
            assert done.returncode == 0, done.stderr
            assert not overlapped(place)
            self._alone[more] = place
        return self._alone[more]


def record_of(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.out / "run.json").read_text(encoding="utf-8"))
    return found


def overlapped(place: Place) -> bool:
    """Whether a decode process worked while one encoded."""
    stages = place.stages()
    spans = [(a, b) for a in stages["encode"]["spans"] for b in stages["decode"]["spans"]]
    found = any(a[0] < b[1] and b[0] < a[1] for a, b in spans)
    assert found == (stages["decode"]["notes"].get("beside") == "encode"), stages
    return found


def check_same(place: Place, expected: Place) -> None:
    for kind in ("frames", "features", "captions"):
        assert place.stored(kind) == expected.stored(kind)
    written = [read_lines(each.out / "captions.jsonl") for each in (place, expected)]
    assert written[0] == written[1]
    assert not record_of(place)["rungs"], "a stage was stepped down"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> OneCard:
    return OneCard(tmp_path_factory.mktemp("desk"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_captions_are_decoded_while_chunks_are_encoded_with_the_same_bytes(desk: OneCard) -> None:
    alone, place = desk.alone(), desk.place("both")
    assert any("both halves together do not fit" in n for n in record_of(alone)["plan"]["notes"])
    assert len(alone.captions()) == CHUNKS
    done = desk.caption(place)
    assert done.returncode == 0, done.stderr
    assert overlapped(place)
    check_same(place, alone)
    stages = place.stages()
    assert stages["decode"]["processes"] == stages["encode"]["processes"] == 1
    assert not stages["decode"]["warnings"] and not stages["encode"]["warnings"]
    calls = gpus.calls(desk.cards(place))
    limits = [c.arguments for c in calls if c.name == "set_per_process_memory_fraction"]
    assert len(limits) == 2 and sum(float(fraction) for fraction, _ in limits) <= 0.95
    assert not list((place.out / "logs").glob("*.feed"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "more",
    [("--engine", "transformers"), ("--prompts", "a=Describe it.", "--prompts", "b=What moves?")],
)
def test_other_engines_follow_and_several_prompts_overlap(
    desk: OneCard, more: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    name = more[0].strip("-")
    alone, place = desk.alone(*more), desk.place(name)
    done = desk.caption(place, *more)
    assert done.returncode == 0, done.stderr
    assert overlapped(place) == (name == "prompts")
    check_same(place, alone)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("is_parent", [False, True])
@pytest.mark.parametrize("moment", ["encode 2", "encode 7", "decode 3", "decode 8"])
def test_a_run_that_is_killed_while_both_halves_work_ends_with_the_same_bytes(
    desk: OneCard, moment: str, is_parent: bool
) -> None:
    pid = "PARENT" if is_parent else "0"
    mark = desk.folder / f"{moment} {is_parent}".replace(" ", "-")
    alone, place = desk.alone(), desk.place(mark.name)
    done = desk.caption(place, **{KILL: f"{moment} {pid} {mark}"})
    assert mark.exists()
    if is_parent:
        assert done.returncode == -signal.SIGKILL
        done = desk.caption(place)
    assert done.returncode == 0, done.stderr
    check_same(place, alone)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("short", ["encode 3", "decode 1", "step 4"])
def test_out_of_memory_ends_the_overlap_and_steps_nothing_down(desk: OneCard, short: str) -> None:
    alone, mark = desk.alone(), desk.folder / short.replace(" ", "-")
    place = desk.place(mark.name)
    done = desk.caption(place, **{OUT_OF_MEMORY: f"{short} {mark}"})
    assert done.returncode == 0 and mark.exists(), done.stderr
    assert overlapped(place)
    check_same(place, alone)
    decode = place.stages()["decode"]
    assert decode["processes"] == 2
    ended = decode["notes"].get("beside_ended", "")
    assert ("out of memory" in ended) == (short != "decode 1"), decode["notes"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resumed_run_captions_features_there_beside_those_missing(desk: OneCard) -> None:
    alone, place = desk.alone(), desk.place("resumed")
    mark = desk.folder / "resumed"
    done = desk.caption(place, *ONE_BY_ONE, **{KILL: f"encode 6 PARENT {mark}"})
    assert done.returncode == -signal.SIGKILL and 0 < len(place.stored("features")) < CHUNKS
    done = desk.caption(place)
    assert done.returncode == 0, done.stderr
    assert overlapped(place)
    check_same(place, alone)


WAVES = "import flows.core.plan.store_limit; flows.core.plan.store_limit.MAX_WAVE_BYTES = 1"
"""A wave has one file."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize(
    "moment", ["", "encode 3 0", "encode 6 PARENT", "encode 7 0", "decode 4 0", "decode 8 PARENT"]
)
def test_processes_that_stay_for_the_next_wave_make_the_same_bytes(
    desk: OneCard, device: str, moment: str
) -> None:
    name = f"waves {device} {moment}".strip().replace(" ", "-").lower()  # PARENT is replaced
    here = gpus.plain() if device == "gpu" else None
    expected, place = desk.in_one_wave(device), desk.place(name)
    kill = {KILL: f"{moment} {desk.folder / name}"} if moment else {}
    done = desk.run(place, here, patch=WAVES, **kill)
    if "PARENT" in moment:
        assert done.returncode == -signal.SIGKILL
        done = desk.run(place, here, patch=WAVES)
    assert done.returncode == 0, done.stderr
    assert not moment or (desk.folder / name).exists()
    check_same(place, expected)
    if not moment:
        assert {stage["processes"] for stage in place.stages().values()} == {1}
    for stage in ("frames", "encode", "decode"):
        journal = place.journal(stage)
        assert len(journal) == CHUNKS and set(journal.values()) == {1}, "made once"
