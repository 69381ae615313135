"""What a stage is, told once for who plans it, who runs it and who shows it; imports no library."""

from dataclasses import dataclass
from typing import Any

from artifacts.schema import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A declaration lies beside the stage that it is of, in the `__init__` of its package."""

    name: str
    reads: str
    """The kind of records that it reads; empty: files."""
    writes: str
    """The kind of records that it makes."""
    part: Part | None = None
    """What of a checkpoint it loads; None: nothing, and it runs on the host."""
    job: type[Any]
    """What its process is told."""
    prompted: bool = False
    """Its records are made of a prompt too, and rows with prompts of like length share a batch."""
    limited: bool = False
    """Its records are cut at so many tokens, which then decide their bytes."""
    refuses: bool = False
    """It may find that a model does not take an item, which it notes among the failures."""
    gives_back: bool = False
    """What it read is not kept once it is through with it."""
    output_version: int
    """Raised when its own output changes for the same inputs; part of every key below it."""
    entry: str
    """The function that its process calls: `package.module:function`."""
    verb: str
    """What people are told that it does."""
