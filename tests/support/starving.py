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
from stages.models.encoding.job import EncodeItem
from stages.process import memory_limit
from stages.process.memory import process_memory
from stages.process.report import EventReporter

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
    """What one process of a stage can hold, told from the rung it is run on.

    `room`: items at once in full precision; `rooms`: the same by a word of the rung, such as
    `int8` or `offload`; `giants`: features' keys of items that fit nowhere, `large` of those that
    fit only where another room is given; `dies`: `raise`, or `kill` for a death without a word,
    `peak` for one with all its memory in use; `weights`: precisions whose weights alone do not fit;
    `once`: a file, which is deleted by the death of the one process that is hungry.
    """

    def __init__(self, stage: str, job: dict[str, Any]) -> None:
        told = json.loads(os.environ.get(VARIABLE, "{}")).get(stage, {})
        half = job.get("half", {})
        words = [half.get("precision", ""), job.get("kv", "")]
        words += [w for w in ("mlp_chunk", "offload") if half.get(w)]
        rooms = [told["rooms"][word] for word in words if word in told.get("rooms", {})]
        self.room = rooms[-1] if rooms else told.get("room", 10**9)
        self.giants = set(told.get("giants", [])) | (set() if rooms else set(told.get("large", [])))
        self.dies = told.get("dies", "raise")
        self.once = told.get("once")
        self.weights = half.get("precision") in told.get("weights", []) and not half.get("offload")

    def check(self, keys: Sequence[str]) -> None:
        """Run out of memory, if these are too many or one too large."""
        starved = self.once is None or os.path.exists(self.once)
        if starved and (len(keys) > self.room or self.giants & set(keys)):
            self.die()

    def die(self) -> None:
        if self.once is not None:
            os.unlink(self.once)
        if self.dies == "peak":
            held = fill()
            time.sleep(0.5)  # so that it is seen
            held.clear()
        if self.dies in ("kill", "peak"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError(WORDS)


def fill() -> list[bytearray]:
    """Take nearly all that this process may."""
    (limit,) = memory_limit._limits
    more = int(0.95 * limit.bytes) - (process_memory().data - limit.baseline.data)
    held = bytearray(max(0, more))
    held[::4096] = b"x" * len(held[::4096])
    return [held]


@contextlib.contextmanager
def hungry(stage: str, module: Any, job: dict[str, Any]) -> Iterator[None]:
    """Let computing a batch, or loading, fail as the environment says."""
    from stages.models.loading import ModelJob

    hunger, load = Hunger(stage, job), ModelJob.load_reloadable

    class Starving(OomRetry):
        def run_batch(self, batch: Any, key: Any, compute: Any) -> Any:
            def computing(members: Any) -> Any:
                computed = [
                    m for m in members if not isinstance(m, EncodeItem)
                ]  # else it is only read
                keys = [m.key if stage == "encode" else m.features for m, *_ in computed]
                hunger.check(keys)
                return compute(members)

            return super().run_batch(batch, key, computing)

        def run_block(self, batches: Any, block: int, key: Any, compute: Any) -> Any:
            def computing(some: Any) -> Any:
                for members in some:
                    hunger.check([m.key for m, _ in members])
                return compute(some)

            return super().run_block(batches, block, key, computing)

    def loading(self: Any, half: Any) -> Any:
        if hunger.weights:
            hunger.die()
        return load(self, half)

    with (
        patch.object(module, "OomRetry", Starving),
        patch.object(ModelJob, "load_reloadable", loading),
    ):
        yield


def encode(job: dict[str, Any], report: EventReporter) -> None:
    import stages.encode.run
    import stages.models.encoding.run

    with hungry("encode", stages.models.encoding.run, job):
        stages.encode.run.run(job, report)


def decode(job: dict[str, Any], report: EventReporter) -> None:
    import stages.decode.run

    with hungry("decode", stages.decode.run, job):
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

    hunger = Hunger("frames", job)
    cut: Callable[..., Any] = stages.frames.run.Cutting.cut_video

    def cutting(self: Any, medium: Any) -> None:
        with self.record_sets.failing(medium):
            if job["workers"] > hunger.room or medium.digest in hunger.giants:
                if hunger.dies == "kill":
                    hunger.die()
                raise MemoryError("Unable to allocate 3 MiB")
        cut(self, medium)

    with patch.object(stages.frames.run.Cutting, "cut_video", cutting):
        stages.frames.run.run(job, report)
