"""What becomes of a request that does not fit beside others, and of one that never does."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.store import open_store
from flows.job.launch import StageCall
from flows.planning.ladder import Ladder
from flows.planning.remembered import Remembered
from flows.planning.rungs import Rung, sizes
from flows.serving.half import Half
from flows.serving.half_plan import HalfPlan
from flows.serving.metrics import Metrics
from flows.serving.refusals import Refused
from flows.serving.residence import Residence
from flows.serving.scratch import Scratch
from stages.process.events import Noted, Published, TooLarge
from stages.process.live import lines_of
from stages.process.outcome import StageOutcome
from stages.process.stage_process import Listener

GIANT = "giant"
"""A work that fits nowhere."""


@dataclass(kw_only=True, slots=True)
class CrowdedHalf:
    """A launcher, and the process that it starts: the last work of a batch does not fit beside the
    others, nor what comes at first after them, before what they took is given back."""

    listen: Listener
    batches: list[list[str]]
    """Keys of each batch that it was told."""
    pipe: str = ""
    outcome: StageOutcome
    dirty: bool = False
    """Whether it still has what the batch before took."""

    def start(self, call: StageCall) -> "CrowdedHalf":
        self.pipe = call.arguments["live"]
        return self

    def wait(self) -> StageOutcome:
        self.listen("embed", Noted({"ready": True}))
        for told in lines_of(self.pipe):
            keys = [member["key"] for member in told]
            self.batches.append(keys)
            crowded = self.dirty or len(keys) > 1
            large = {GIANT, keys[-1]} if crowded else {GIANT}
            self.listen("embed", Published(keys=tuple(key for key in keys if key not in large)))
            for key in large.intersection(keys):
                self.listen("embed", TooLarge(key=key, wanted_bytes=0, error="out of memory"))
            self.dirty = len(keys) > 1
        return self.outcome

    def stop(self) -> None: ...


def ladder(folder: Path) -> Ladder:
    rungs = {"embed": [Rung(stage="embed", batch=size) for size in sizes(8)]}
    remembered = Remembered(open_store(str(folder)), {"embed": 0}, 1)
    return Ladder(rungs, remembered, budget_bytes=1, tell=lambda entry, text: None)


def asked(folder: Path, keys: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Ask a half for these at once. Return what each was answered, and the batches it was told."""
    batches: list[list[str]] = []

    async def go() -> list[str]:
        half = Half(
            HalfPlan(
                name="embed",
                ladder=ladder(folder / "store"),
                peak_bytes=lambda rung: 1,
                call=lambda rung, pipe, room: StageCall(
                    name="embed", arguments={"live": pipe}, device="cpu", log=folder / "log"
                ),
                answers=lambda keys: {key: f"made {key}" for key in keys},
                most=0,
                weight=1,
                wait_seconds=0.0,
                idle_seconds=60.0,
            ),
            Residence("cpu", 1, lambda text: None),
            lambda listen: CrowdedHalf(
                listen=listen, batches=batches, outcome=StageOutcome(name="embed")
            ),
            Scratch(folder),
            Metrics(),
        )
        running = asyncio.create_task(half.run())
        works = [half.make(key, {"key": key}, 1) for key in keys]
        found = await asyncio.wait_for(asyncio.gather(*works, return_exceptions=True), 30)
        half.close()
        await asyncio.wait_for(running, 30)
        assert half.batches.idle and not half.batches.waiting
        return [str(each.status) if isinstance(each, Refused) else str(each) for each in found]

    return asyncio.run(go()), batches


def test_what_does_not_fit_beside_others_is_made_alone_and_not_refused(tmp_path: Path) -> None:
    found, batches = asked(tmp_path, "abcd")
    assert found == ["made a", "made b", "made c", "made d"]
    assert batches == [["a", "b", "c", "d"], ["d"], ["d"]], "at first it found what others left"


def test_what_does_not_fit_alone_is_refused_and_the_others_are_answered(tmp_path: Path) -> None:
    found, batches = asked(tmp_path, [GIANT, "a", "b"])
    assert found == ["422", "made a", "made b"]
    assert batches.count([GIANT]) == 2
    assert asked(tmp_path, [GIANT])[0] == ["422"]
