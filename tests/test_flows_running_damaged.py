"""A wave over damaged packs is gone through again, each pack costing its own part alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from artifacts.pack_object import DamagedRecord
from flows.pipelines import CAPTION
from flows.running.sequence import REMAKES, Sequence


class Steps:
    """Finds these packs damaged, one after the other, and then none."""

    def __init__(self, packs: list[str]) -> None:
        self.packs = packs
        self.passes = 0

    def frames(self, wave: Any) -> None:
        self.passes += 1

    def begin_frames(self, wave: Any) -> None: ...

    def through(self, stage: Any, wave: Any) -> None:
        if self.packs:
            raise DamagedRecord(f"{self.packs.pop(0)} was damaged")


def go(packs: list[str]) -> Steps:
    steps = Steps(packs)
    again = SimpleNamespace(refresh=lambda: None, reconsider=lambda: None)
    job: Any = SimpleNamespace(ledger=again, pipeline=CAPTION[:2])
    sequence = Sequence(job, steps, SimpleNamespace())  # type: ignore[arg-type]
    sequence._write_at = float("inf")
    sequence._wave([], [])
    return steps


def test_many_damaged_packs_end_no_run() -> None:
    assert go([f"{number}.pack" for number in range(20)]).passes == 21


def test_a_pack_that_is_damaged_again_and_again_does() -> None:
    with pytest.raises(DamagedRecord, match=r"a\.pack"):
        go(["a.pack", "b.pack"] * REMAKES)
