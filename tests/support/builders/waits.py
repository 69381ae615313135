"""Stages of a run that wait as a GPU would compute; all else in them is real.

`PENSTOCK_BENCHMARK_WAITS` holds the milliseconds of an encoded clip, a prompt and a step, then a
file to which each process appends what it has waited. Captions end at the token limit.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from stages.process.events import EventReporter

WAITS = "PENSTOCK_BENCHMARK_WAITS"
ENTRIES = {name: f"tests.support.builders.waits:{name}" for name in ("encode", "decode")}
"""Stage → function that its process calls in place of its own."""


class Waits:
    """The waits of one process."""

    def __init__(self, stage: str) -> None:
        encode, prompt, step, self._file = os.environ[WAITS].split(maxsplit=3)
        self.encode, self.prompt, self.step = (
            float(each) / 1000 for each in (encode, prompt, step)
        )
        self._stage, self._seconds = stage, 0.0

    def wait(self, seconds: float) -> None:
        """Wait as long as the GPU would compute."""
        time.sleep(seconds)
        self._seconds += seconds

    def run(self, stage: Callable[[dict[str, Any], EventReporter], None], *given: Any) -> None:
        """Run a stage, and write down what it has waited."""
        try:
            stage(*given)
        finally:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(f"{self._stage} {self._seconds}\n")


def warm(job: dict[str, Any]) -> None:
    """Import what the real stage imports, before its memory is limited."""
    if "max_new_tokens" in job:
        import stages.decode.run

        stages.decode.run.warm(job)
    elif "half" in job:
        import stages.encode.run

        stages.encode.run.warm(job)


def encode(job: dict[str, Any], report: EventReporter) -> None:
    """Wait for each clip."""
    import stages.encode.run
    from stages.models.encoding.run import EncodeSpec

    waits = Waits("encode")

    def divide(row: Any) -> list[Any]:
        waits.wait(waits.encode)
        return [row]

    vars(stages.encode.run)["EncodeSpec"] = partial(EncodeSpec, divide=divide)
    waits.run(stages.encode.run.run, job, report)


def decode(job: dict[str, Any], report: EventReporter) -> None:
    """Wait for each prompt and for each step."""
    import stages.decode.run
    from stages.decode.engines.inflight import request_prefill
    from stages.decode.engines.inflight.scheduler import InflightScheduler

    waits, prefill, step = (
        Waits("decode"),
        vars(request_prefill)["prefill_row"],
        InflightScheduler._step,
    )

    def prefilled(*given: Any, **more: Any) -> Any:
        waits.wait(waits.prompt)
        return replace(prefill(*given, **more), eos_token_ids=frozenset())

    def stepped(scheduler: Any) -> None:
        waits.wait(waits.step)
        step(scheduler)

    vars(request_prefill)["prefill_row"] = prefilled
    InflightScheduler._step = stepped  # type: ignore[assignment, method-assign]
    waits.run(stages.decode.run.run, job, report)


if __name__ == "__main__":
    from flows.core.machine import launch
    from flows.interfaces.cli.main import main

    launch.ENTRIES.update(ENTRIES)  # type: ignore[attr-defined]
    sys.exit(main())
