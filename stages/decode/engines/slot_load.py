"""The inputs and the terms of an engine's memory estimate. Imports no model library."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from stages.decode.engines import EngineSpec
from stages.models.row_memory import RowMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLoad:
    """The largest workload of an engine's slots."""

    engine: EngineSpec
    memory: RowMemory
    """What the decoder remembers of a row."""
    number_bytes: int
    """Bytes of a number that it computes with."""
    slots: int
    tokens: int
    """Tokens of the longest prompt."""
    new_tokens: int
    """Most tokens of a caption."""
    prompt_bytes: int
    """Peak of reading one prompt alone, in bytes."""
    device: str


class SlotTerm(NamedTuple):
    """One term of an engine's estimate, and its source."""

    part: Literal["activation", "kv", "workspace", "host"]
    bytes: int
    why: str
    """One line: what is multiplied by what."""
