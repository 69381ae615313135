"""Runs a process that converts a model's pickled weights into safetensors. Reads none of them
itself.

The process has a memory limit that does not depend on the size of the model, because a pickle may
request any amount.
"""

from typing import Any, NamedTuple

from artifacts.errors import OutOfMemory, UsageError
from artifacts.user_folders import user_cache
from flows.console.display import Display
from flows.console.units import gib
from flows.machine.launch import DirectLauncher, StageCall, run_with_restarts
from stages.convert.job import ConvertJob

MAX_BYTES = 1 << 30
"""Memory for a conversion, in bytes above the imports. Parts of tensors take 30 MB; the headers of
100,000 tensors take 300 MB."""


class Converted(NamedTuple):
    """The contents of the folder after the conversion."""

    tensors: int
    data_bytes: int
    shards: int
    there: int
    """Number of shards that existed before."""


def convert(job: ConvertJob, display: Display) -> Converted:
    """Convert a model. Raises PenstockError."""

    call = StageCall(
        name="convert",
        job=job,
        device="cpu",
        log=user_cache() / "logs" / "convert.log",
        budget=MAX_BYTES,
    )
    try:
        notes: dict[str, Any] = run_with_restarts(DirectLauncher(display.on_event), call).notes
    except OutOfMemory as error:
        raise UsageError(
            f"{job.source}: reading it takes more than {gib(MAX_BYTES)} of memory",
            hint="Model weights never need that much; check where the file comes from",
        ) from error
    finally:
        display.close()
    return Converted(*(int(notes[field]) for field in Converted._fields))
