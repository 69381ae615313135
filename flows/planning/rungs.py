"""The fallback rungs of a stage: the ways to run it, cheapest first."""

from dataclasses import dataclass

from artifacts.plurals import counted
from flows.pipelines import STAGES
from stages.memory.oom_retry import smaller
from stages.tune.job import ADAMW8, PAGED_ADAMW8

MLP_CHUNKS = (1024, 256)
"""Positions that pass an MLP at once, if all positions of a prompt or of frames are too many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One way to run one stage."""

    stage: str
    """Name of the stage."""
    batch: int
    """Maximum chunks per batch; of the frames stage, files decoded at once."""
    prefill: int = 0
    """Positions computed at once; 0: all. Encode: size of an MLP chunk. Decode: size of a prefill
    chunk."""
    kv: str = ""
    """Placement of the KV cache: empty (on the device), `offloaded` (in host memory), or
    `quantized` (on the device, which changes some words)."""
    precision: str = ""
    """Precision of the half, as in PartSettings; empty for frames."""
    offload: bool = False
    """Whether weights stay in host memory (on disk for a CPU and for the encode stage) and are
    loaded layer by layer."""
    block: int = 0
    """Encode stage with offload: maximum chunks whose batches pass a layer while it is loaded."""
    seated: bool = False
    """Decode stage: whether each chunk has a slot, which the next chunk takes when it is done."""
    context: int = 0
    """Summarize stage: maximum tokens of prompt and answer together."""
    rank: int = 0
    """Tune stage: rank of the adapter; 0: no training."""
    caption: int = 0
    """Tune stage: approximate maximum tokens of a caption."""
    recompute: bool = False
    """Whether layers are recomputed for the backward pass (gradient checkpointing)."""
    optimizer: str = ""
    """Tune stage: optimizer."""

    @property
    def name(self) -> str:
        """Return the rung as text: `batch 4, int8`."""
        if STAGES[self.stage].reads == "frames" and STAGES[self.stage].part is None:
            return f"{counted(self.batch, 'request')} at once"
        if STAGES[self.stage].part is None:
            return f"{self.batch} file{'s' if self.batch > 1 else ''} at once"
        past = f" past up to {self.block} at a time" if self.block > self.batch else ""
        pieces = [
            self.size_name,
            self.precision,
            f"prefill chunks of {self.prefill}" if self.prefill else "",
            f"KV cache {self.kv}" if self.kv else "",
            f"contexts of {self.context:,} tokens" if self.context else "",
            "weights offloaded" if self.offload and not self.block else "",
            f"streamed layer by layer{past}" if self.block else "",
            "gradient checkpointing" if self.recompute else "",
            "8-bit moments" if self.optimizer in (ADAMW8, PAGED_ADAMW8) else "",
        ]
        return ", ".join(filter(None, pieces))

    @property
    def size_name(self) -> str:
        """Return the batch size as text: `batch 4`, or `4 slots`."""
        return counted(self.batch, "slot") if self.seated else f"batch {self.batch}"


def sizes(largest: int) -> list[int]:
    """Return the largest size, then the powers of two below it, so that sub-batches nest."""
    found = [largest]
    while found[-1] > 1:
        found.append(smaller(found[-1]))
    return found
