"""Has a process of its own turn a model's pickled weights into safetensors. Reads nothing itself.

The process is kept to so much memory, whatever the size of the model: what is in a pickle may ask
for any.
"""

from pathlib import Path
from typing import Any, NamedTuple

from artifacts.errors import OutOfMemory, UsageError
from flows.console.display import Display, gib
from flows.job.config import user_cache
from flows.job.launch import DirectLauncher, StageCall, run_to_end
from stages.process.events import Event, Noted

DTYPES = ("fp16", "bf16", "fp32")
"""Types that floating numbers can be written in."""
SHARD_BYTES = 2 << 30
"""Size of a file of weights, which is also what is made again, at most, after a process died."""
MOST_BYTES = 1 << 30
"""Bytes that converting may take above its imports. Pieces of tensors take 30 MB; what is said of
100,000 tensors takes 300 MB."""


class Converted(NamedTuple):
    """What a folder holds in the end."""

    tensors: int
    data_bytes: int
    shards: int
    there: int
    """Number of shards that were there before."""


def convert(
    source: Path, folder: Path, dtype: str, display: Display, shard_bytes: int = SHARD_BYTES
) -> Converted:
    """Convert a model; `dtype` is empty for numbers that keep their types. Raises PenstockError."""

    def listen(name: str, event: Event) -> None:
        if isinstance(event, Noted) and "shards" in event.values:
            display.stage(name, event.values["shards"], event.values["there"])
        display.listen(name, event)

    call = StageCall(
        name="convert",
        arguments={
            "source": str(source),
            "folder": str(folder),
            "dtype": dtype,
            "shard_bytes": shard_bytes,
        },
        device="cpu",
        log=user_cache() / "logs" / "convert.log",
        budget=MOST_BYTES,
    )
    try:
        notes: dict[str, Any] = run_to_end(DirectLauncher(listen), call).notes
    except OutOfMemory as error:
        raise UsageError(
            f"{source} takes more than {gib(MOST_BYTES)} of memory to be read",
            hint="No weights of a model do: check where it comes from",
        ) from error
    finally:
        display.close()
    return Converted(*(int(notes[field]) for field in Converted._fields))
