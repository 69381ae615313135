"""The inputs and the terms of an engine's memory estimate. Imports no model library."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from stages.decode.engines import EngineSpec
from stages.models.gguf import GgufShape
from stages.models.kv_profile import RowMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLoad:
    """The largest workload of an engine's slots."""

    engine: EngineSpec
    memory: RowMemory
    """KV-cache size of a sequence."""
    number_bytes: int
    """Bytes per number of the compute dtype."""
    slots: int
    tokens: int
    """Tokens of the longest prompt."""
    new_tokens: int
    """Maximum number of tokens of a caption."""
    prompt_bytes: int
    """Peak memory of the prefill of one prompt, in bytes."""
    device: str
    gguf: GgufShape | None = None
    """Dimensions of the GGUF file that runs; None: torch runs the decoder."""
    direct: bool = True
    """Whether attention is torch's SDPA, which can read the keys of the slots alone."""


class SlotTerm(NamedTuple):
    """One term of an engine's estimate, and its source."""

    part: Literal["activation", "kv", "workspace", "host"]
    bytes: int
    why: str
    """One line: the factors of the product."""
