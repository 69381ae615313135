"""A decode stage that is killed at a step of its slots; all else in it is real."""

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flows.core.machine.launch import ENTRIES
from stages.process.events import EventReporter

VARIABLE = "PENSTOCK_TEST_DEATHS"
"""A file with the steps at which one process after the other is killed; absent: none is."""
DYING = {**ENTRIES, "decode": "tests.support.dying:decode"}
ABORTING = {**ENTRIES, "decode": "tests.support.dying:decode_aborting"}


def warm(job: dict[str, Any]) -> None:
    """Import what the real stage imports, before its memory is limited."""
    import stages.decode.run

    stages.decode.run.warm(job)


def decode(job: dict[str, Any], report: EventReporter) -> None:
    """Run the stage, in one thread or in two by turns, and publish captions as soon as they end."""
    import torch

    import stages.decode.run
    from stages.decode.engines.inflight import engine
    from stages.decode.engines.inflight.pool import SlotPool

    left = _deaths()
    torch.set_num_threads(1 + len(left) % 2)
    whole = SlotPool.step
    steps = [0]

    def step(pool: SlotPool) -> torch.Tensor:
        steps[0] += 1
        if left and steps[0] == left[0]:
            Path(os.environ[VARIABLE]).write_text("\n".join(map(str, left[1:])))
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(pool)

    with (
        patch.object(SlotPool, "step", step),
        patch.object(engine, "PUBLISH_INTERVAL_SECONDS", 0.0),
    ):
        stages.decode.run.run(job, report)


def decode_aborting(job: dict[str, Any], report: EventReporter) -> None:
    """Run the stage. After some captions, the first process ends as llama.cpp ends one without
    memory."""
    import stages.decode.run
    from stages.decode.engines.inflight import engine
    from stages.decode.engines.inflight.gguf_pool import GgufPool

    step, answered, once = GgufPool.step, EventReporter.answered, Path(os.environ[VARIABLE])
    published: list[str] = []

    def counted(to: EventReporter, *keys: str, **more: Any) -> None:
        published.extend(keys)
        answered(to, *keys, **more)

    def limited(pool: GgufPool) -> Any:
        if len(published) > 2 and once.exists():
            once.unlink()
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            os.abort()
        return step(pool)

    with (
        patch.object(GgufPool, "step", limited),
        patch.object(EventReporter, "answered", counted),
        patch.object(engine, "PUBLISH_INTERVAL_SECONDS", 0.0),
    ):
        stages.decode.run.run(job, report)


def _deaths() -> list[int]:
    if VARIABLE not in os.environ:
        return []
    return [int(line) for line in Path(os.environ[VARIABLE]).read_text().splitlines()]
