"""The job of merging an adapter into one checkpoint; imports no library."""

from dataclasses import dataclass, field
from typing import Any

from artifacts.model_files import ModelFiles
from stages.models.shards import SHARD_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeJob:
    """The checkpoint to write, and of what."""

    model: str
    """Folder of the checkpoint that the adapter was trained on."""
    adapter: str
    """Folder of the adapter."""
    recipe: dict[str, Any]
    """All that decides the bytes that are written."""
    folder: str
    """Folder to write to."""
    as_published: bool = False
    """Whether the checkpoint is one that is run as published."""
    trust_remote_code: bool = False
    shard_bytes: int = SHARD_BYTES
    files: ModelFiles = field(default_factory=ModelFiles)
    """Those of both, as they were planned with; none: they are not compared."""
