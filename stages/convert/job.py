"""The job description of one model conversion. Imports no library."""

from dataclasses import dataclass

from stages.models.shards import SHARD_BYTES

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""Types that floating numbers can be written in, as the command line names them → as torch does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertJob:
    """The files to convert, and how."""

    source: str
    """Folder with pickled weights, or one file of them."""
    folder: str
    """Folder to write to."""
    dtype: str = ""
    """A key of DTYPES; empty: numbers keep their types."""
    shard_bytes: int = SHARD_BYTES
