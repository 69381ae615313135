"""Rungs of the ladder: the ways in which a stage can be run, cheapest first; knows no machine."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One way to run one stage."""

    stage: str
    """`frames`, `encode` or `decode`."""
    batch: int
    """Chunks computed at once at the most; of the frames stage, files cut at once."""
    prefill: int = 0
    """Tokens of a prompt that go through an MLP at once; 0: all."""
    kv: str = ""
    """Where the KV cache is: empty, on the device; `offloaded`, in host memory; `quantized`, on the
    device in few bits, which changes words."""
    precision: str = ""
    """What the half computes in, as HalfSettings has it; empty for frames."""
    offload: bool = False
    """Weights stay in host memory (of a CPU: on disk) and come to the device layer by layer."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
