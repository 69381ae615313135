"""What a server tells its processes, while they read it and while they do not."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from flows.job.launch import StageCall
from flows.serving.live_stage import LiveStage
from stages.process.events import Noted
from stages.process.live import WITHDRAWN, ToldBatches, lines_of
from stages.process.outcome import StageOutcome
from stages.process.stage_process import Listener
from tests.support.on_a_loop import HANGS_SECONDS, on_a_loop

LARGE = "\N{WATER WAVE}" * 20_000
"""A prompt that is 240 KB in JSON, and a pipe holds 64."""


class Process:
    """A launcher, and what it starts: reads its pipe when it is let, and ends when it is."""

    pid = 0

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self.reads, self.dies = threading.Event(), threading.Event()
        self.told: list[Any] = []
        self.pipe = ""

    def start(self, call: StageCall) -> "Process":
        self.pipe = call.arguments["live"]
        return self

    def wait(self) -> StageOutcome:
        self.listen("decode", Noted({"ready": True}))
        while not (self.reads.wait(0.01) or self.dies.is_set()):
            pass
        if not self.dies.is_set():
            self.told.extend(lines_of(self.pipe))
        return StageOutcome(name="decode")

    def stop(self) -> None: ...


def started(folder: Path) -> tuple[LiveStage, Process, asyncio.Event, asyncio.Event]:
    """A stage and its process, and what is set when it is ready and when it has ended."""
    made: list[Process] = []
    ready, over = asyncio.Event(), asyncio.Event()

    def launcher(listen: Listener) -> Any:
        made.append(Process(listen))
        return made[0]

    stage = LiveStage(
        launcher,
        lambda pipe: StageCall(
            name="decode", arguments={"live": pipe}, device="cpu", log=folder / "log"
        ),
        folder / "pipe",
        lambda event: ready.set(),
        lambda stage, error: over.set(),
    )
    return stage, made[0], ready, over


def test_what_is_told_before_a_process_reads_holds_nothing_up_and_arrives(tmp_path: Path) -> None:
    async def work() -> None:
        stage, process, ready, over = started(tmp_path)
        stage.tell(["early"])
        await ready.wait()
        for number in range(18):
            stage.tell([{"key": str(number), "prompt": LARGE}])
        stage.stop()
        stage.tell(["too late"])
        process.reads.set()
        await over.wait()
        early, *told = process.told
        assert early == ["early"]
        assert [line[0]["key"] for line in told] == [str(number) for number in range(18)]
        assert all(line[0]["prompt"] == LARGE for line in told)
        assert not os.path.exists(process.pipe)

    on_a_loop(work)


def test_what_a_process_that_died_did_not_read_is_thrown_away(tmp_path: Path) -> None:
    files = len(os.listdir("/proc/self/fd"))

    async def work() -> None:
        stage, process, ready, over = started(tmp_path)
        await ready.wait()
        for _ in range(18):
            stage.tell([{"key": "a", "prompt": LARGE}])
        process.dies.set()
        await over.wait()
        stage.tell(["nobody reads this"])
        stage.stop()
        assert not os.path.exists(process.pipe)

    on_a_loop(work)
    assert len(os.listdir("/proc/self/fd")) <= files


def told(folder: Path, *lines: str) -> ToldBatches:
    pipe = folder / "told"
    pipe.write_text("\n".join([*lines, ""]))
    found = ToldBatches(str(pipe))
    found._thread.join(HANGS_SECONDS)
    return found


def test_what_was_withdrawn_before_it_was_begun_is_not_begun(tmp_path: Path) -> None:
    found = told(tmp_path, '[{"key": "a"}, {"key": "b"}]', f'{{"{WITHDRAWN}": ["a", "x"]}}')
    assert list(found) == [[{"key": "b"}]]


def test_who_asks_again_after_all_left_is_answered(tmp_path: Path) -> None:
    lines = ['[{"key": "a"}]', f'{{"{WITHDRAWN}": ["a"]}}', '[{"key": "a"}]']
    (first,) = told(tmp_path, *lines)
    assert [work.is_withdrawn for work in first] == [False]


def test_what_is_withdrawn_while_it_is_made_says_so(tmp_path: Path) -> None:
    pipe = tmp_path / "told"
    os.mkfifo(pipe)
    batches = iter(ToldBatches(str(pipe)))
    with open(pipe, "w", buffering=1) as lines:
        lines.write('[{"key": "a"}, {"key": "b"}]\n')
        first, second = next(batches)
        lines.write(f'{{"{WITHDRAWN}": ["a"]}}\n[{{"key": "c"}}]\n')
        assert next(batches) == [{"key": "c"}]
        assert (first.is_withdrawn, second.is_withdrawn) == (True, False)
    with pytest.raises(StopIteration):
        next(batches)
