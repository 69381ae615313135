"""Converts a model's pickled weights to safetensors, in a limited process.

This module reads none of them itself. The process has a memory limit that does not depend on the
size of the model, because a pickle may request any amount.
"""

from typing import Any, NamedTuple

from artifacts.disk.paths import user_cache
from artifacts.errors import OutOfMemory, UsageError
from flows.core.console.display import Display
from flows.core.console.lines import gib
from flows.core.machine.launch import DirectLauncher, StageCall, run_with_restarts
from stages.convert import ConvertJob

MAX_BYTES = 1 << 30
"""Memory for a conversion, in bytes above the imports. Parts of tensors take 30 MB; the headers of
100,000 tensors take 300 MB."""


class Converted(NamedTuple):
    """The contents of the folder after the conversion."""

    tensors: int
    """Number of tensors."""
    data_bytes: int
    """Bytes of all tensors, without headers."""
    shards: int
    """Number of safetensors files."""
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
