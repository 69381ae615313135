"""Converts pickled weights to safetensors in its own process."""

from dataclasses import dataclass

from stages.models.shards import SHARD_BYTES

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""Floating-point types: name on the command line → name in torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertJob:
    """The weights to convert, and the settings."""

    source: str
    """Folder with pickled weights, or one file."""
    folder: str
    """Folder to write to."""
    dtype: str = ""
    """Key of DTYPES; empty: types are kept."""
    shard_bytes: int = SHARD_BYTES
