"""What a stage is, told once for who plans it, who runs it and who shows it; imports no library."""

from dataclasses import dataclass

from artifacts.schema import Half


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A declaration lies beside the stage that it is of, in the `__init__` of its package."""

    name: str
    reads: str
    """The kind of records that it reads; empty: files."""
    writes: str
    """The kind of records that it makes."""
    half: Half | None
    """What of a checkpoint it loads."""
    recipe: int
    """Raised when its own output changes for the same inputs; part of every key below it."""
    entry: str
    """The function that its process calls: `package.module:function`."""
    verb: str
    """What people are told that it does."""
