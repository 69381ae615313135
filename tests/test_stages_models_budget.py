"""A real half of some 100 MB in a real stage's process: the budget is kept to closely."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import OutOfMemory
from artifacts.keys import digest_of
from benchmarks._models import FRAMES, Shape, build, publish_clips
from stages.process.events import Event, Shrunk, TooLarge
from stages.process.stage_process import StageProcess

SHAPE = Shape(layers=5, width=768, tower_layers=12, tower_width=640, vocabulary=8000)
TOKENS = 4
FEATURES = digest_of("features")


@dataclass(kw_only=True, slots=True)
class Real:
    """A checkpoint with clips, and how stages are run on them."""

    folder: Path
    members: list[dict[str, str]]
    peaks: dict[str, int] = field(default_factory=dict)
    """Stage → what it takes when it may take all there is, in bytes."""
    _runs: int = 0

    def run(self, stage: str, budget: int) -> tuple[int, list[Event]]:
        """Its peak above its imports, and what it told; one chunk at a time, each made anew."""
        self._runs += 1
        first = stage == "encode" and not self.peaks
        job: dict[str, Any] = {
            "store": str(self.folder / "store"),
            "model": str(self.folder / "model"),
            "dtype": "float32",
            "namespace": FEATURES if first else digest_of(self._runs),
            "batches": [[self.entry(stage, member)] for member in self.members],
        }
        job |= (
            {"frames_namespace": FRAMES}
            if stage == "encode"
            else {"features_namespace": FEATURES, "max_new_tokens": TOKENS}
        )
        told: list[Event] = []
        process = StageProcess(
            stage,
            f"stages.{stage}.run:run",
            job,
            device="cpu",
            log=self.folder / f"{stage}.log",
            listen=lambda _, event: told.append(event),
            budget=budget,
        )
        outcome = process.wait()
        assert outcome.items == len(self.members)
        return outcome.peak_host_bytes - outcome.notes["loaded_bytes"], told

    def entry(self, stage: str, member: dict[str, str]) -> dict[str, str]:
        features = digest_of(["features", member["frames"]])
        key = features if stage == "encode" else digest_of(["caption", member["frames"]])
        return {**member, "features": features, "key": key}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder = tmp_path_factory.mktemp("real")
    build(folder / "model", SHAPE, TOKENS)
    made = Real(folder=folder, members=publish_clips(str(folder / "store"), [16, 16, 16]))
    for stage in ("encode", "decode"):
        made.peaks[stage] = made.run(stage, 0)[0]
    return made


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_stage_that_needs_a_little_less_than_its_budget_lives(stage: str, real: Real) -> None:
    assert real.peaks[stage] > 100 << 20
    peak, told = real.run(stage, int(real.peaks[stage] / 0.9))
    assert peak <= real.peaks[stage] / 0.9
    assert not any(isinstance(event, Shrunk | TooLarge) for event in told)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_stage_that_needs_a_little_more_than_its_budget_dies_of_it(
    stage: str, real: Real
) -> None:
    with pytest.raises(OutOfMemory) as caught:
        real.run(stage, int(real.peaks[stage] / 1.15))
    # Pages of libraries that were mapped before, and are written to only now, count nowhere else.
    assert caught.value.peak_bytes <= 1.02 * real.peaks[stage] / 1.15
