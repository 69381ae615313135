"""Stages that get less memory than they need, as the environment says; all else in them is real."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any
from unittest.mock import patch

from flows.machine.launch import ENTRIES
from stages.memory.oom_retry import OomRetry
from stages.models.encoding import EncodeItem
from stages.process import memory_limit
from stages.process.events import EventReporter
from stages.process.memory import process_memory

VARIABLE = "PENSTOCK_TEST_STARVE"
"""Stage → what is wrong with it, as JSON; see `Hunger`."""
WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB"
STARVED = {
    **ENTRIES,
    **{name: f"tests.support.starving:{name}" for name in ("frames", "encode", "decode", "tune")},
}


def warm(job: dict[str, Any]) -> None:
    """Import what the real stage imports, before its memory is limited."""
    if "batches" in job:
        stage = "encode" if "frames_namespace" in job else "decode"
        import_module(f"stages.{stage}.run").warm(job)


class Hunger:
    """What one process of a stage can hold.

    `room`: items at once; `giants`: digests of files that fit nowhere.
    """

    def __init__(self, stage: str) -> None:
        values = json.loads(os.environ.get(VARIABLE, "{}")).get(stage, {})
        self.room = values.get("room", 10**9)
        self.giants = set(values.get("giants", []))

    def die(self) -> None:
        """Be killed with all the memory in use."""
        held = fill()
        time.sleep(0.5)  # so that it is seen
        held.clear()
        os.kill(os.getpid(), signal.SIGKILL)


def fill() -> list[bytearray]:
    """Take nearly all that this process may."""
    (limit,) = memory_limit._limits
    more = int(0.95 * limit.bytes) - (process_memory().data - limit.baseline.data)
    held = bytearray(max(0, more))
    held[::4096] = b"x" * len(held[::4096])
    return [held]


@contextlib.contextmanager
def hungry(stage: str, module: Any) -> Iterator[None]:
    """Let computing a batch fail as the environment says."""
    hunger = Hunger(stage)

    class Starving(OomRetry):
        def run_batch(self, batch: Any, key: Any, compute: Any) -> Any:
            def computing(members: Any) -> Any:
                # Those that are only read take nothing.
                if sum(not isinstance(member, EncodeItem) for member in members) > hunger.room:
                    hunger.die()
                return compute(members)

            return super().run_batch(batch, key, computing)

    with patch.object(module, "OomRetry", Starving):
        yield


def encode(job: dict[str, Any], report: EventReporter) -> None:
    import stages.encode.run
    import stages.models.encoding.run

    with hungry("encode", stages.models.encoding.run):
        stages.encode.run.run(job, report)


def decode(job: dict[str, Any], report: EventReporter) -> None:
    import stages.decode.run

    with hungry("decode", stages.decode.run):
        stages.decode.run.run(job, report)


def tune(job: dict[str, Any], report: EventReporter) -> None:
    """Of examples, `rows` at once; where `again` is said, only with layers computed again."""
    import stages.tune.run
    import stages.tune.training

    hunger = json.loads(os.environ[VARIABLE])["tune"]
    learn: Callable[..., Any] = vars(stages.tune.training)["loss_of"]

    def learning(half: Any, processor: Any, lessons: Sequence[Any]) -> Any:
        if len(lessons) > hunger["rows"] or (hunger.get("again") and not job["recompute"]):
            raise RuntimeError(WORDS)
        return learn(half, processor, lessons)

    with patch.object(stages.tune.training, "loss_of", learning):
        stages.tune.run.run(job, report)


def frames(job: dict[str, Any], report: EventReporter) -> None:
    """Of files, `room` at once; a giant is named by its digest."""
    import stages.frames.run

    hunger = Hunger("frames")
    cut: Callable[..., Any] = stages.frames.run.Cutting.cut_video

    def cutting(self: Any, medium: Any) -> None:
        with self.record_sets.failing(medium):
            if job["workers"] > hunger.room or medium.digest in hunger.giants:
                raise MemoryError("Unable to allocate 3 MiB")
        cut(self, medium)

    with patch.object(stages.frames.run.Cutting, "cut_video", cutting):
        stages.frames.run.run(job, report)
