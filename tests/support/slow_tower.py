"""Frames that are cut slowly, and an encoder and prompts that are as slow per chunk; all else in
them is real. Each may kill a process at a chunk, or run out of memory."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from flows.core.machine.launch import ENTRIES
from stages.process.events import EventReporter
from tests.support.builders.waits import warm as warm

SECONDS = "PENSTOCK_TEST_CHUNK_SECONDS"
"""How long a chunk is cut, and encoded; absent: no longer than it takes."""
OUT_OF_MEMORY = "PENSTOCK_TEST_OUT_OF_MEMORY"
"""`encode 3 FILE`: at its third chunk the encode stage runs out of memory, unless the file exists;
`decode` counts prompts, the two of the engine check first, and `step` counts steps in slots."""
KILL = "PENSTOCK_TEST_KILL"
"""`frames 3 PID FILE`: at its third chunk the frames stage kills this process, its own if it is 0,
unless the file exists. A PID of `PARENT` is that of the command."""
SLOW = {
    **ENTRIES,
    "frames": "tests.support.slow_tower:frames",
    "encode": "tests.support.slow_tower:encode",
    "decode": "tests.support.slow_tower:decode",
}


def frames(job: dict[str, Any], report: EventReporter) -> None:
    """Cut each chunk slowly."""
    import stages.frames.run
    from stages.frames import video

    class SlowVideo(video.Video):
        def chunks(self, *given: Any) -> Iterator[Any]:
            for at, chunk in enumerate(super().chunks(*given), 1):
                _pass_time("frames", at)
                yield chunk

    vars(video)["Video"] = SlowVideo
    stages.frames.run.run(job, report)


def encode(job: dict[str, Any], report: EventReporter) -> None:
    """Encode each chunk slowly."""
    import stages.encode.run
    from stages.models.encoding.run import EncodeSpec

    done = count(1)

    def slowly(row: Any) -> list[Any]:
        _pass_time("encode", next(done))
        return [row]

    vars(stages.encode.run)["EncodeSpec"] = partial(EncodeSpec, divide=slowly)
    stages.encode.run.run(job, report)


def decode(job: dict[str, Any], report: EventReporter) -> None:
    """Read each prompt slowly."""
    import stages.decode.run
    from stages.decode.engines.inflight import request_prefill
    from stages.decode.engines.inflight.scheduler import InflightScheduler

    prefill, step = vars(request_prefill)["prefill_row"], InflightScheduler._step
    prompts, steps = count(1), count(1)

    def slowly(*given: Any, **more: Any) -> Any:
        _pass_time("decode", next(prompts))
        return prefill(*given, **more)

    def counted(scheduler: Any) -> None:
        _run_out("step", next(steps))
        step(scheduler)

    vars(request_prefill)["prefill_row"] = slowly
    InflightScheduler._step = counted  # type: ignore[assignment, method-assign]
    stages.decode.run.run(job, report)


def _run_out(stage: str, at: int) -> None:
    if OUT_OF_MEMORY not in os.environ:
        return
    name, chunk, file = os.environ[OUT_OF_MEMORY].split(maxsplit=2)
    if (name, int(chunk)) == (stage, at) and not Path(file).exists():
        import torch

        Path(file).touch()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


def _pass_time(stage: str, at: int) -> None:
    _run_out(stage, at)
    time.sleep(float(os.environ.get(SECONDS, "0")))
    if KILL not in os.environ:
        return
    name, chunk, pid, file = os.environ[KILL].split(maxsplit=3)
    if (name, int(chunk)) == (stage, at) and not Path(file).exists():
        Path(file).touch()
        os.kill(int(pid) or os.getpid(), signal.SIGKILL)
