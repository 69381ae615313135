"""The fallback rungs of a stage: the ways to run it, cheapest first."""

from dataclasses import asdict, dataclass
from typing import Any

from artifacts.words import counted
from flows.pipelines import STAGES
from stages.memory.oom_retry import smaller
from stages.tune.job import ADAMW8

MLP_CHUNKS = (1024, 256)
"""Positions that go through an MLP at once, where all of a prompt, or of frames, are too many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One way to run one stage."""

    stage: str
    """Name of the stage."""
    batch: int
    """Most chunks computed at once; of the frames stage, files cut at once."""
    prefill: int = 0
    """Positions that are computed at once, 0: all. Of encode it is the MLP chunk; decode reads its
    prompts in such pieces."""
    kv: str = ""
    """Place of the KV cache: empty, on the device; `offloaded`, in host memory; `quantized`, on the
    device in few bits, which changes words."""
    precision: str = ""
    """Precision of the half, as PartSettings has it; empty for frames."""
    offload: bool = False
    """Whether weights stay in host memory (of a CPU, and of the encode stage: on disk) and come to
    the device layer by layer."""
    block: int = 0
    """Most chunks whose batches pass a layer together while it is there; of the encode stage when
    it offloads."""
    seated: bool = False
    """Whether each chunk has a slot of its own, which the next one takes when it is done; of the
    decode stage."""
    context: int = 0
    """Most tokens that are read and said at once, of the summarize stage."""
    rank: int = 0
    """Rank of the adapter that is trained, of the tune stage; 0: none is."""
    caption: int = 0
    """Most tokens of a caption that is learned, about."""
    recompute: bool = False
    """Whether what layers make is computed again for the backward pass, and not kept."""
    optimizer: str = ""
    """Optimizer of what is trained."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def name(self) -> str:
        """Return the rung in words for people: `batch 4, int8`."""
        if STAGES[self.stage].part is None:
            return f"{self.batch} file{'s' if self.batch > 1 else ''} at once"
        past = f" past up to {self.block} at a time" if self.block > self.batch else ""
        pieces = [
            self.size_name,
            self.precision,
            f"read {self.prefill} positions at a time" if self.prefill else "",
            f"KV cache {self.kv}" if self.kv else "",
            f"contexts of {self.context:,} tokens" if self.context else "",
            "weights offloaded" if self.offload and not self.block else "",
            f"streamed layer by layer{past}" if self.block else "",
            "layers computed again" if self.recompute else "",
            "moments in 8 bit" if self.optimizer == ADAMW8 else "",
        ]
        return ", ".join(filter(None, pieces))

    @property
    def size_name(self) -> str:
        """Return its batch in words: `batch 4`, or `4 slots`."""
        return counted(self.batch, "slot") if self.seated else f"batch {self.batch}"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Rung":
        """Return the rung that was written, by an older version without what is new since."""
        return cls(**{name: value[name] for name in cls.__slots__ if name in value})


def sizes(most: int) -> list[int]:
    """Return the largest, then the powers of two below it. Pieces of the one are whole pieces of
    the next."""
    found = [most]
    while found[-1] > 1:
        found.append(smaller(found[-1]))
    return found
