"""Stages that get less memory than they need, as the environment says; all else in them is real."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

from flows.core.machine.launch import ENTRIES
from stages.process.events import EventReporter

VARIABLE = "PENSTOCK_TEST_STARVE"
"""Stage → what is wrong with it, as JSON."""
WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB"
STARVED = {**ENTRIES, **{name: f"tests.support.starving:{name}" for name in ("frames", "tune")}}


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
    """Of files, `room` at once; `giants`, named by their digests, fit nowhere."""
    import stages.frames.run

    hunger = json.loads(os.environ.get(VARIABLE, "{}")).get("frames", {})
    cut: Callable[..., Any] = stages.frames.run.Cutting.cut_video

    def cutting(self: Any, medium: Any) -> None:
        with self.record_sets.failing(medium):
            too_many = job["workers"] > hunger.get("room", 10**9)
            if too_many or medium.digest in hunger.get("giants", ()):
                raise MemoryError("Unable to allocate 3 MiB")
        cut(self, medium)

    with patch.object(stages.frames.run.Cutting, "cut_video", cutting):
        stages.frames.run.run(job, report)
