"""What becomes of a request that does not fit beside others, and of one that never does."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import StageDied
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
from tests.support.on_a_loop import on_a_loop

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


def half_of(folder: Path, start: Callable[[Listener], Any], **settings: Any) -> Half:
    """A half whose process is what this starts."""
    plan = HalfPlan(
        name="embed",
        ladder=ladder(folder / "store"),
        peak_bytes=lambda rung: 1,
        call=lambda rung, pipe, room: StageCall(
            name="embed", arguments={"live": pipe}, device="cpu", log=folder / "log"
        ),
        answers=lambda keys: {key: f"made {key}" for key in keys},
        **{"most": 0, "weight": 1, "wait_seconds": 0.0, "idle_seconds": 60.0, **settings},
    )
    return Half(plan, Residence("cpu", 1, lambda text: None), start, Scratch(folder), Metrics())


def asked(folder: Path, keys: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Ask a half for these at once. Return what each was answered, and the batches it was told."""
    batches: list[list[str]] = []

    async def go() -> list[str]:
        half = half_of(
            folder,
            lambda listen: CrowdedHalf(
                listen=listen, batches=batches, outcome=StageOutcome(name="embed")
            ),
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


class BusyHalf:
    """A launcher, and the process that it starts: it reads when it is let, makes what it is told
    but what it is to keep, and dies when it is told to."""

    pid = 0

    def __init__(self, listen: Listener, keeps: Sequence[str] = ()) -> None:
        self.listen, self.keeps = listen, keeps
        self.reads, self.dies = threading.Event(), threading.Event()
        self.lines: list[Any] = []
        self.pipe = ""

    def start(self, call: StageCall) -> "BusyHalf":
        self.pipe = call.arguments["live"]
        return self

    def wait(self) -> StageOutcome:
        self.listen("embed", Noted({"ready": True}))
        while not self.reads.wait(0.01):
            if self.dies.is_set():
                raise StageDied("killed", hint="", return_code=-9)
        for line in lines_of(self.pipe):
            self.lines.append(line)
            if isinstance(line, list):
                keys = [member["key"] for member in line if member["key"] not in self.keeps]
                if keys:
                    self.listen("embed", Published(keys=tuple(keys)))
        return StageOutcome(name="embed")

    def stop(self) -> None: ...


LARGE = "\N{WATER WAVE}" * 20_000
"""A prompt that is 240 KB in JSON, and a pipe holds 64."""


@pytest.mark.parametrize("dies", [False, True])
def test_prompts_that_no_pipe_holds_hold_nothing_up_and_are_answered(
    tmp_path: Path, dies: bool
) -> None:
    made: list[BusyHalf] = []

    def start(listen: Listener) -> BusyHalf:
        made.append(BusyHalf(listen))
        if dies and len(made) > 1:
            made[-1].reads.set()
        return made[-1]

    async def work() -> None:
        half = half_of(tmp_path, start)
        running = asyncio.create_task(half.run())
        works = [
            asyncio.create_task(half.make(str(n), {"key": str(n), "prompt": LARGE}, 1))
            for n in range(18)
        ]
        while not half.batches.sent:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        (made[0].dies if dies else made[0].reads).set()
        assert await asyncio.gather(*works) == [f"made {n}" for n in range(18)]
        half.close()
        await running

    on_a_loop(work)


def test_what_nobody_wants_any_more_takes_no_place(tmp_path: Path) -> None:
    made: list[BusyHalf] = []

    def start(listen: Listener) -> BusyHalf:
        made.append(BusyHalf(listen, keeps=["long"]))
        made[0].reads.set()
        return made[0]

    async def work() -> None:
        half = half_of(tmp_path, start, most=1, withdraws=True)
        half.batches.flying = True
        running = asyncio.create_task(half.run())
        long = asyncio.create_task(half.make("long", {"key": "long"}, 1))
        queued = asyncio.create_task(half.make("queued", {"key": "queued"}, 1))
        plain = asyncio.create_task(half.make("plain", {"key": "plain"}, 1))
        while not half.has("long"):
            await asyncio.sleep(0.01)
        long.cancel()
        queued.cancel()
        assert await plain == "made plain"
        assert not half.batches.sent and not half.batches.waiting
        half.close()
        await running
        assert made[0].lines[:2] == [[{"key": "long"}], {"withdrawn": ["long"]}]
        assert {"key": "queued"} not in made[0].lines[2]

    on_a_loop(work)


def test_what_two_want_goes_on_when_one_leaves(tmp_path: Path) -> None:
    made: list[BusyHalf] = []

    def start(listen: Listener) -> BusyHalf:
        made.append(BusyHalf(listen))
        return made[0]

    async def work() -> None:
        half = half_of(tmp_path, start, withdraws=True)
        running = asyncio.create_task(half.run())
        both = [asyncio.create_task(half.make("a", {"key": "a"}, 1)) for _ in range(2)]
        while not half.has("a"):
            await asyncio.sleep(0.01)
        both[0].cancel()
        made[0].reads.set()
        assert await both[1] == "made a"
        half.close()
        await running
        assert made[0].lines == [[{"key": "a"}]]

    on_a_loop(work)


def test_no_more_bytes_wait_than_there_is_room_for(tmp_path: Path) -> None:
    async def work() -> None:
        half = half_of(tmp_path, BusyHalf)
        text = "x" * (24 << 20)
        works = [
            asyncio.create_task(half.make(str(n), {"key": str(n), "text": text}, 1))
            for n in range(3)
        ]
        with pytest.raises(Refused) as refused:
            await works[-1]
        assert refused.value.status == 429 and refused.value.retry
        for each in works:
            each.cancel()
        await asyncio.wait(works)
        half.close()
        await half.run()

    on_a_loop(work)
