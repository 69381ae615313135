"""The job of writing one checkpoint in few bits, and all kinds of exports; imports no library."""

from dataclasses import dataclass, field
from typing import Any

from artifacts.model_files import ModelFiles
from artifacts.schema import Part
from stages.export.graph_job import GRAPHS
from stages.models.shards import SHARD_BYTES

BITSANDBYTES = ("nf4", "int8")
"""Kinds that transformers and Penstock load."""
PACKED = {"w4a16": 4, "w8a16": 8}
"""Kinds that vLLM and SGLang load → bits of a number."""
KINDS = (*GRAPHS, *BITSANDBYTES, *PACKED)
GROUPS = (32, 64, 128)
"""Columns that may share a scale, in a packed kind: what vLLM's Marlin kernel takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """The checkpoint to write, and of what."""

    model: str
    """Folder of the checkpoint that it is made of."""
    recipe: dict[str, Any]
    """All that decides the bytes that are written."""
    folder: str
    """Folder to write to."""
    kind: str
    """One of BITSANDBYTES or PACKED."""
    parts: tuple[Part, ...]
    """Parts whose linear layers are quantized."""
    group: int = 0
    """Columns that share a scale, in a packed kind."""
    calibrated: str = ""
    """Folder of weights that were rounded with what they are multiplied by in mind; empty: each
    number is rounded by itself."""
    as_published: bool = False
    """Whether the checkpoint is one that is run as published."""
    trust_remote_code: bool = False
    shard_bytes: int = SHARD_BYTES
    files: ModelFiles = field(default_factory=ModelFiles)
    """Those that it was planned with; none: they are not compared."""
