"""Captions with recorded decode steps on a stand-in for a GPU: those of plain steps, whatever goes
wrong with the recordings."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import penstock_demo
from stages.memory.cuda_graphs import SWITCH
from tests.support import gpus
from tests.support.fake_gpu.graphs import DRIVER
from tests.support.fake_gpu.state import GraphFaults
from tests.support.pipeline import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CHECKED = 12
"""Replays of the engine check, and the one that is compared."""
NONE = GraphFaults()
FEW = ("--slots", "2", "--max-new-tokens", "40")
LEARN_SECONDS = 1200.0
STILLS = 4
"""Images, whose prompts are short: the pool gets narrower when the last clips are done."""


class Desk:
    """Clips of the demo, images, and a machine with a card."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cards = gpus.plain().write(folder / "gpu")
        clips = folder / "clips"
        shutil.copytree(penstock_demo.CLIPS, clips)
        for number in range(STILLS):
            Image.new("RGB", (64, 64), (90 * number, 0, 200)).save(clips / f"still-{number}.png")
        self.place = Place(clips=clips, out=folder / "out", store=folder / "store")

    def run(self, *words: str, faults: GraphFaults = NONE, plain: bool = False) -> None:
        """Run a command on a card whose graphs have these faults; `plain`: without any."""
        gpus.plain(graphs=faults).write(self.cards)
        (self.cards / "calls.log").unlink(missing_ok=True)
        own = {"XDG_CACHE_HOME": str(self.folder / "cache"), **({SWITCH: "0"} if plain else {})}
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=gpus.environment(self.cards, **own),
            capture_output=True,
            text=True,
            timeout=LEARN_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def captions(
        self, faults: GraphFaults = NONE, plain: bool = False, options: Sequence[str] = FEW
    ) -> dict[str, str]:
        """Caption everything once more, from the features that are there."""
        shutil.rmtree(self.folder / "store" / "captions", ignore_errors=True)
        shutil.rmtree(self.place.out, ignore_errors=True)
        self.run(*self.place.command(*options), faults=faults, plain=plain)
        return {row["media_path"]: row["caption"] for row in self.place.captions()}

    def notes(self) -> dict[str, Any]:
        notes: dict[str, Any] = self.place.stages()["decode"]["notes"]
        return notes

    def modes(self) -> set[str]:
        """The modes in which steps were recorded."""
        calls = gpus.calls(self.cards)
        return {call.arguments[0] for call in calls if call.name == "record"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def expected(desk: Desk) -> dict[str, str]:
    """Captions by plain steps."""
    found = desk.captions(plain=True)
    assert desk.modes() == set() and SWITCH in desk.notes()["recorded_reason"]
    assert "recorded" not in desk.notes() or desk.notes()["recorded"]["replayed"] == 0
    assert len(found) > 10
    return found


@pytest.mark.parametrize(
    ("faults", "reason", "least"),
    [
        (GraphFaults(), "", 100),
        (GraphFaults(failing=(1,)), DRIVER, 0),
        (GraphFaults(failing=(2,)), DRIVER, 0),
        (GraphFaults(failing=(3,)), DRIVER, 1),
        (GraphFaults(short=(2,)), "CUDA out of memory", 0),
        (GraphFaults(other=(2,)), "other logits", 0),
        (GraphFaults(replay=100 + CHECKED), DRIVER, 90),
    ],
    ids=["none", "first", "second", "later", "memory", "bits", "hundredth"],
)
def test_captions_are_those_of_plain_steps(
    faults: GraphFaults, reason: str, least: int, desk: Desk, expected: dict[str, str]
) -> None:
    assert desk.captions(faults) == expected
    notes = desk.notes()
    assert (notes["engine"], notes["slots"]) == ("inflight", 2), "no slot was lost"
    assert desk.modes() == {"thread_local"}
    assert reason in notes.get("recorded_reason", "") and bool(reason) == (
        "recorded_reason" in notes
    )
    counts = notes.get("recorded", {"replayed": 0})
    assert counts["replayed"] >= least and (least or not counts["replayed"])
    rungs = json.loads((desk.place.out / "run.json").read_text())["rungs"]
    assert not any(rung["reason"] == "out of memory" for rung in rungs)
